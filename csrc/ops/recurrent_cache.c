/* recurrent_cache.c - what a recurrent layer's forward pass keeps for backward beside y and c. */
#include "../fastseq.h"

ptrdiff_t fsq_recurrent_cache_width(const fsq_recurrent_call *c) {
    if (c->layer_norm) return 2 * (c->cell == FSQ_LSTM ? 4 : 3) * c->H + 2;
    switch (c->cell) {
        case FSQ_RNN_TANH:
        case FSQ_RNN_RELU: return c->zoneout_h > 0 ? c->H : 0;      /* h~, which is y else */
        case FSQ_MUT1: return 4 * c->H;                             /* r, z, n and the inner tanh */
        case FSQ_LSTM: return 4 * c->H;                             /* i, f, g, o */
        case FSQ_GRU: return 4 * c->H;                              /* r, z, n and U_n (d h') + b_hn */
        default: return 3 * c->H;                                   /* r, z, n */
    }
}
