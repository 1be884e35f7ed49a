# Leaves: integer arithmetic with named rounding and overflow, and calendar days.
# Not for policy. cimported by the core, the rules and the codec. cdivision is on, so `//` and `%` truncate:
# everybody else calls the helpers here.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    static inline int ledger_add_overflow(int64_t a, int64_t b, int64_t *out) { return __builtin_add_overflow(a, b, out); }
    static inline int ledger_mul_overflow(int64_t a, int64_t b, int64_t *out) { return __builtin_mul_overflow(a, b, out); }
    /* floor(a * b / c) for a, b >= 0, c > 0; the product in 128 bits. Returns 1 when it does not fit int64. */
    static inline int ledger_mul_div_floor(int64_t a, int64_t b, int64_t c, int64_t *out) {
        unsigned __int128 quotient = (unsigned __int128)a * (unsigned __int128)b / (unsigned __int128)c;
        *out = (int64_t)quotient;
        return quotient > (unsigned __int128)INT64_MAX;
    }
    /* floor(a * b / c) and the remainder, for a >= 0, 0 <= b <= c, c > 0: the quotient fits. */
    static inline void ledger_mul_div_rem(int64_t a, int64_t b, int64_t c, int64_t *quotient, int64_t *remainder) {
        if (!(((uint64_t)a | (uint64_t)b) >> 31)) {     /* nearly always: a 64-bit division is several times faster */
            *quotient = a * b / c;
            *remainder = a * b % c;
        } else {
            unsigned __int128 product = (unsigned __int128)a * (unsigned __int128)b;
            *quotient = (int64_t)(product / (unsigned __int128)c);
            *remainder = (int64_t)(product % (unsigned __int128)c);
        }
    }
    """
    bint add_overflow "ledger_add_overflow"(int64_t a, int64_t b, int64_t* out) noexcept nogil
    bint mul_overflow "ledger_mul_overflow"(int64_t a, int64_t b, int64_t* out) noexcept nogil
    bint mul_div_floor "ledger_mul_div_floor"(int64_t a, int64_t b, int64_t c, int64_t* out) noexcept nogil
    void mul_div_rem "ledger_mul_div_rem"(int64_t a, int64_t b, int64_t c, int64_t* quotient, int64_t* remainder) noexcept nogil


cdef inline int64_t div_floor(int64_t a, int64_t b) noexcept nogil:
    # Floor for b > 0, also for negative a.
    cdef int64_t quotient = a // b
    if a % b < 0:
        quotient -= 1
    return quotient


cdef inline int64_t min_i64(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


cdef inline int64_t max_i64(int64_t a, int64_t b) noexcept nogil:
    return a if a > b else b


# Civil calendar, days since 1970-01-01. Source: the era arithmetic of H. Hinnant's "chrono-compatible low-level date
# algorithms"; restricted here to years 1970..2199, where every intermediate is positive.

cdef inline int32_t day_from_civil(int32_t year, int32_t month, int32_t day) noexcept nogil:
    cdef int32_t y = year - (1 if month <= 2 else 0)
    cdef int32_t era = y // 400
    cdef int32_t year_of_era = y - era * 400
    cdef int32_t shifted = month - 3 if month > 2 else month + 9
    cdef int32_t day_of_year = (153 * shifted + 2) // 5 + day - 1
    cdef int32_t day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146097 + day_of_era - 719468


cdef inline void civil_from_day(int32_t days, int32_t* year, int32_t* month, int32_t* day) noexcept nogil:
    cdef int32_t z = days + 719468
    cdef int32_t era = z // 146097
    cdef int32_t day_of_era = z - era * 146097
    cdef int32_t year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    cdef int32_t day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    cdef int32_t shifted = (5 * day_of_year + 2) // 153
    day[0] = day_of_year - (153 * shifted + 2) // 5 + 1
    month[0] = shifted + 3 if shifted < 10 else shifted - 9
    year[0] = year_of_era + era * 400 + (1 if month[0] <= 2 else 0)


cdef inline int32_t month_days(int32_t year, int32_t month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if month == 4 or month == 6 or month == 9 or month == 11:
        return 30
    return 31


cdef inline int32_t day_add_months(int32_t days, int32_t months) noexcept nogil:
    # The same day of the month `months` later (months >= 0), clamped to that month's last day: 31 Jan + 1 = 28 Feb.
    cdef int32_t year, month, day, last
    civil_from_day(days, &year, &month, &day)
    month += months
    year += (month - 1) // 12
    month = (month - 1) % 12 + 1
    last = month_days(year, month)
    return day_from_civil(year, month, day if day < last else last)


cdef inline int32_t day_from_yyyymmdd(int32_t value) noexcept nogil:
    # Days since 1970, or -1 when it is no calendar date of the years 2000..2199.
    cdef int32_t year = value // 10000, month = value // 100 % 100, day = value % 100
    if year < 2000 or year > 2199 or month < 1 or month > 12 or day < 1 or day > month_days(year, month):
        return -1
    return day_from_civil(year, month, day)
