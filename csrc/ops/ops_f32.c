/* ops_f32.c - every op for float32, in one translation unit, and what has no float type. */
#define FSQ_F32

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

#include "fingerprint.c"
#include "ids.c"
#include "recurrent_cache.c"
