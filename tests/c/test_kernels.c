/* test_kernels.c - runs every test on every instruction set of this machine, on one thread and on teams forced upon the smallest sizes. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "fastseq.h"

const char *check_isa;
int check_threads;

static long checks, failures;

void check_that(int holds, const char *file, int line, const char *text, ...) {
    checks++;
    if (holds || ++failures > 20) return;
    va_list arguments;
    va_start(arguments, text);
    fprintf(stderr, "%s:%d: [%s, %d threads] ", file, line, check_isa, check_threads);
    vfprintf(stderr, text, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static struct { void *start[1024]; int count; } buffers;

void *check_buffer(size_t bytes, size_t offset) {
    char *start = malloc(bytes + offset ? bytes + offset : 1);
    if (!start || buffers.count == 1024) abort();
    buffers.start[buffers.count++] = start;
    memset(start, 0xff, bytes + offset);
    return start + offset;
}

void check_free_all(void) {
    while (buffers.count) free(buffers.start[--buffers.count]);
}

static uint64_t state = 1;

void check_seed(uint64_t seed) { state = seed * 2 + 1; }

uint64_t check_bits(void) {                                 /* splitmix64 (Steele, Lea & Flood 2014) */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

double check_uniform(double low, double high) { return low + (high - low) * (double)(check_bits() >> 11) * 0x1p-53; }

void test_core(void);
void test_across_isas(void);
void test_ops_f32(void);
void test_ops_f64(void);
void test_optim_f32(void);
void test_optim_f64(void);
void test_matmul_f32(void);
void test_matmul_f64(void);
void test_attention_f32(void);
void test_attention_f64(void);
void test_attention_decoder_f32(void);
void test_attention_decoder_f64(void);
void test_conv_f32(void);
void test_conv_f64(void);
void test_recurrent_f32(void);
void test_recurrent_f64(void);

int main(void) {
    static const int teams[] = {1, 2, 5};
    for (int i = 0; (check_isa = fsq_isa_available(i)); i++) {
        if (fsq_isa_select(check_isa) != 0) return 2;
        for (size_t t = 0; t < sizeof teams / sizeof teams[0]; t++) {
            check_threads = teams[t];
            fsq_threads_force(check_threads > 1);
            check_seed(1);
            test_core();
            test_ops_f32();
            test_ops_f64();
            test_optim_f32();
            test_optim_f64();
            test_matmul_f32();
            test_matmul_f64();
            test_attention_f32();
            test_attention_f64();
            test_attention_decoder_f32();
            test_attention_decoder_f64();
            test_conv_f32();
            test_conv_f64();
            test_recurrent_f32();
            test_recurrent_f64();
            check_free_all();
        }
        fprintf(stderr, "%s: %ld checks, %ld failed\n", check_isa, checks, failures);
    }
    check_isa = "all";
    test_across_isas();
    check_free_all();
    fprintf(stderr, "%ld checks, %ld failed\n", checks, failures);
    return failures != 0;
}
