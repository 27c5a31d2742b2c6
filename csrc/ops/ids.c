/* ids.c - the check of token numbers that goes before every gather: no float type, so compiled once, with ops_f32.c. */
#include "../fastseq.h"

enum { ids_block = 512 };                                   /* between two looks at the result, so that a block is a loop without exits */

ptrdiff_t fsq_ids_find_outside(const int64_t *ids, ptrdiff_t n, int64_t limit) {
    uint64_t last = (uint64_t)limit - 1;
    for (ptrdiff_t from = 0; from < n; from += ids_block) {
        ptrdiff_t to = n - from < ids_block ? n : from + ids_block;
        uint64_t outside = 0;                               /* top bit: an id below 0, or above `last` */
        for (ptrdiff_t i = from; i < to; i++) outside |= (uint64_t)ids[i] | (last - (uint64_t)ids[i]);
        if (outside >> 63 || limit <= 0)
            for (ptrdiff_t i = from; i < to; i++)
                if (ids[i] < 0 || ids[i] >= limit) return i;
    }
    return -1;
}
