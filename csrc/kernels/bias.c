/* bias.c - db = the sum over the rows of dy, first row to last.
 *
 * Bound by the bytes of dy, which is read once, row after row: each column is one chain of additions, and bias_rows rows at a
 * time keep db in registers between them. */

enum { bias_rows = 8 };                                     /* 4 and 16 are no faster on 3200 x 1024 floats (Cascade Lake) */

/* db (n) = or += rows [0, rows) of dy (rows dy_row apart). */
FSQ_INLINE void bias_add(real *db, const real *dy, const ptrdiff_t rows, ptrdiff_t dy_row, ptrdiff_t n, int add) {
    for (ptrdiff_t j = 0; j < n; j += VL) {
        ptrdiff_t width = n - j;
        if (width >= VL) {
            vreal sum = add ? vload(db + j) : vzero();
            for (ptrdiff_t r = 0; r < rows; r++) sum = vadd(sum, vload(dy + r * dy_row + j));
            vstore(db + j, sum);
        } else {
            vreal sum = add ? vload_n(db + j, width) : vzero();
            for (ptrdiff_t r = 0; r < rows; r++) sum = vadd(sum, vload_n(dy + r * dy_row + j, width));
            vstore_n(db + j, sum, width);
        }
    }
}

/* n columns of M rows; n may be less than the row's length dy_row. add: the chains go on from db. */
static void bias_backward(real *db, const real *dy, ptrdiff_t M, ptrdiff_t dy_row, ptrdiff_t n, int add) {
    ptrdiff_t m = M % bias_rows;
    bias_add(db, dy, m, dy_row, n, add);
    for (; m < M; m += bias_rows) bias_add(db, dy + m * dy_row, bias_rows, dy_row, n, 1);
}
