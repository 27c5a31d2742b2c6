/* matmul.h - a product inside a parallel region, for ops that need one on the way (recurrent_backward.c). */
#ifndef FSQ_MATMUL_H
#define FSQ_MATMUL_H

#include "../core/threads.h"
#include "../kernels/kernels.h"

/* One product c = f(a b + bias) or c += a b: fsq_matmul's arguments for one element of the batch. */
typedef struct {
    real *c;
    const real *a, *b, *packed, *bias;
    ptrdiff_t M, N, K, c_row, a_row, a_col, b_row, b_col;
    int add;
    fsq_function function;
} matmul_args;

/* Every worker of the team calls this with the same arguments; c is complete, and work free again, after the caller's next barrier.
 * work: as matmul_work says for this team's size, the same for all. */
static void matmul_team(const fsq_team *team, const matmul_args *args, real *work);
static size_t matmul_work(const FSQ_FN(kernels) *k, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int packed, int threads);

#endif
