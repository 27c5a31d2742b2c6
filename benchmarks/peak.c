/* peak.c - multiply-adds on registers only: the rate that a core reaches when nothing else costs anything.
 *
 * BYTES is the width of the registers. Twelve chains, each waiting for itself only: more than latency times units asks for on the
 * cores of today (at most 4 cycles times 2 or 3 units), and with two constants few enough for 16 registers. Compiled with
 * contraction allowed: one fused instruction where the instruction set has it, a product and a sum where it has not. */
typedef float vec __attribute__((vector_size(BYTES)));

/* Does 2 * 12 * BYTES / 4 operations per round; returns something that depends on all of them. */
float peak(long rounds, float factor, float term) {
    vec f = factor - (vec){0}, t = term - (vec){0};
    vec a0 = t, a1 = a0 + t, a2 = a1 + t, a3 = a2 + t, a4 = a3 + t, a5 = a4 + t;
    vec a6 = a5 + t, a7 = a6 + t, a8 = a7 + t, a9 = a8 + t, a10 = a9 + t, a11 = a10 + t;
    for (long i = 0; i < rounds; i++) {
        a0 = a0 * f + t, a1 = a1 * f + t, a2 = a2 * f + t, a3 = a3 * f + t, a4 = a4 * f + t, a5 = a5 * f + t;
        a6 = a6 * f + t, a7 = a7 * f + t, a8 = a8 * f + t, a9 = a9 * f + t, a10 = a10 * f + t, a11 = a11 * f + t;
    }
    vec all = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11;
    float sum = 0;
    for (unsigned i = 0; i < BYTES / sizeof(float); i++) sum += all[i];
    return sum;
}
