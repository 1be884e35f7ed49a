# Where a command comes from, and limits on how often. Included by ledger/_core.pyx.
# Not for the tables (ledger/_velocity.pxd) nor for what a limit says (ledger/_image.pxd, docs/rules.md).
#
# What counters need of a command stands in its entry, hashed, and is applied from there (docs/decisions/fraud.md).

cdef struct Origin:             # a command's, or that of an ORIGIN section
    int32_t offset_s            # of the store's zone at the business time
    uint32_t given              # bit: OriginPart
    uint64_t[ORIGIN_COUNT] hash


cdef uint64_t origin_hash(const Core* core, uint32_t part, Slice text) noexcept nogil:
    # Stores and tills are no secret, so that whoever has no key can count them too.
    cdef uint8_t[80] buffer
    cdef Hash128 hashed
    buffer[0] = <uint8_t>part
    memcpy(buffer + 1, text.data, text.size)
    if part >= ORIGIN_STORE:
        hashed = siphash(PUBLIC_KEY, buffer, 1 + text.size)
    else:
        hashed = siphash(core.identity_key, buffer, 1 + text.size)
    return hashed.lo


cdef void origin_of(const Core* core, const Command* command, Origin* origin) noexcept nogil:
    # What the command says beside its receipt key.
    cdef uint32_t part
    origin.given = command.origins
    if command.given & GIVEN_RECEIPT_KEY:
        origin.given &= ~(<uint32_t>1 << ORIGIN_STORE | <uint32_t>1 << ORIGIN_TILL)
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if origin.given >> part & 1:
            origin.hash[part] = origin_hash(core, part, command.origin[part])


cdef bint origin_read(const Slice* section, Origin* origin) noexcept nogil:
    # False: the section is broken.
    cdef Cursor cursor
    cdef const uint8_t* data
    cdef uint8_t part
    origin.given = 0
    origin.offset_s = 0
    if section.data == NULL:
        return True
    cursor_open(&cursor, section)
    origin.offset_s = <int32_t>get_signed(&cursor)
    while cursor_more(&cursor):
        part = get_byte(&cursor)
        data = get_bytes(&cursor, 8)
        if data == NULL or part < ORIGIN_DEVICE or part >= ORIGIN_COUNT:
            return False
        memcpy(&origin.hash[part], data, 8)
        origin.given |= <uint32_t>1 << part
    return not cursor.broken


cdef void write_origin(EntryWriter* writer, const Core* core, const Command* command, const Decision* d) noexcept nogil:
    cdef Origin origin
    cdef uint32_t part
    if command.origins == 0:
        return
    origin_of(core, command, &origin)
    section_begin(writer, SECTION_ORIGIN)
    put_signed(writer, 0)
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if origin.given >> part & 1:
            put_byte(writer, <uint8_t>part)
            put_bytes(writer, <const uint8_t*>&origin.hash[part], 8)
    section_end(writer)


cdef bint differs_in_origin(const Core* core, const Command* command, const EntryView* view) noexcept nogil:
    # Whether a repeat comes from elsewhere. An entry whose origin cannot be read came from elsewhere.
    cdef Origin now, then
    cdef uint32_t part
    if command.origins == 0 and view.sections[SECTION_ORIGIN].data == NULL:
        return False
    origin_of(core, command, &now)
    if not origin_read(&view.sections[SECTION_ORIGIN], &then) or now.given != then.given:
        return True
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if now.given >> part & 1 and now.hash[part] != then.hash[part]:
            return True
    return False


cdef bint check_origin(const Command* command, Outcome* outcome) noexcept nogil:
    # Of a request that has one. A store or till beside a receipt key is that of the key.
    cdef bint keyed = command.given & GIVEN_RECEIPT_KEY
    if not (check_text(command.origin[ORIGIN_DEVICE], 0, DEVICE_BYTES_MAX, FIELD_ORIGIN_DEVICE, outcome)
            and check_text(command.origin[ORIGIN_CASHIER], 0, CASHIER_BYTES_MAX, FIELD_ORIGIN_CASHIER, outcome)
            and check_text(command.origin[ORIGIN_PAYMENT_CARD], 0, PAYMENT_CARD_BYTES_MAX, FIELD_ORIGIN_PAYMENT_CARD, outcome)
            and check_text(command.origin[ORIGIN_PARTNER], 0, PARTNER_BYTES_MAX, FIELD_ORIGIN_PARTNER, outcome)
            and check_text(command.origin[ORIGIN_STORE], 0, STORE_BYTES_MAX, FIELD_ORIGIN_STORE, outcome)
            and check_text(command.origin[ORIGIN_TILL], 0, TILL_BYTES_MAX, FIELD_ORIGIN_TILL, outcome)):
        return False
    if keyed and command.origins >> ORIGIN_STORE & 1 and not text_equal(command.origin[ORIGIN_STORE], command.store):
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_ORIGIN_STORE, command.origin[ORIGIN_STORE])
    if keyed and command.origins >> ORIGIN_TILL & 1 and not text_equal(command.origin[ORIGIN_TILL], command.till):
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_ORIGIN_TILL, command.origin[ORIGIN_TILL])
    return True
