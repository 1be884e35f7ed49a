/* VERIFY(condition): an invariant of the core. Prints where it broke and aborts: the journal is the truth, a restart
   replays it. Always compiled in, so only for cheap checks. `assert` in a `noexcept` function would be ignored. */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#define VERIFY(condition) do { if (__builtin_expect(!(condition), 0)) { \
    fprintf(stderr, "invariant broken: %s at %s:%d\n", #condition, __FILE__, __LINE__); abort(); } } while (0)
static inline void ledger_verify(int condition, const char *what) {
    if (__builtin_expect(!condition, 0)) { fprintf(stderr, "invariant broken: %s\n", what); abort(); }
}
