/* check.h - what the C tests share: checks that count, buffers of the exact size, numbers, and the campaign over ISAs and threads. */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdint.h>

/* Counts, and reports the first failures with their place; the program's exit status is whether there were any. */
void check_that(int holds, const char *file, int line, const char *text, ...) __attribute__((format(printf, 4, 5)));
#define CHECK(condition) check_that(!!(condition), __FILE__, __LINE__, "%s", #condition)
#define CHECK_WITH(condition, ...) check_that(!!(condition), __FILE__, __LINE__, __VA_ARGS__)

/* `bytes` bytes that start one `offset` past an aligned address and end where the allocation ends, so that a sanitizer sees any
 * access beyond; filled with 0xFF (a NaN). Freed by check_free_all. */
void *check_buffer(size_t bytes, size_t offset);
void check_free_all(void);

/* Reproducible numbers: bits, and uniform in [low, high). */
uint64_t check_bits(void);
double check_uniform(double low, double high);
void check_seed(uint64_t seed);

/* Where the campaign stands: instruction set and threads, for messages. */
extern const char *check_isa;
extern int check_threads;

#endif
