/* ops_f64.c - every op for float64, in one translation unit. */
#define FSQ_F64

#include "tables.c"

#include "additive_attention.c"
#include "batch_norm.c"
#include "bias.c"
#include "cross_entropy.c"
#include "dropout.c"
#include "embedding.c"
#include "layer_norm.c"
#include "matmul.c"
#include "conv.c"
#include "max_pool.c"
#include "attention.c"
#include "linear_cross_entropy.c"
#include "recurrent.c"
#include "attention_decoder.c"
#include "optim.c"
#include "pointwise.c"
#include "softmax.c"
