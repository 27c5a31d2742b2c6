/* embedding.c - rows of a table by their number, and the sum of gradients back into them.
 *
 * Bound by bytes. */

FSQ_INLINE void embedding_copy_row(real *to, const real *from, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) vstore(to + i, vload(from + i));
    if (i < n) vstore_n(to + i, vload_n(from + i, n - i), n - i);
}

FSQ_INLINE void embedding_add_row(real *to, const real *from, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) vstore(to + i, vadd(vload(to + i), vload(from + i)));
    if (i < n) vstore_n(to + i, vadd(vload_n(to + i, n - i), vload_n(from + i, n - i)), n - i);
}

/* y (n, D) = weight[ids] */
static void embedding_forward(real *y, const int64_t *ids, const real *weight, ptrdiff_t n, ptrdiff_t D) {
    for (ptrdiff_t i = 0; i < n; i++) embedding_copy_row(y + i * D, weight + ids[i] * D, D);
}

/* Rows [row, row_end), columns [column, column_end) of dweight: zeroed, then the gradients in the order of n. */
static void embedding_backward(real *dweight, const real *dy, const int64_t *ids, ptrdiff_t n, ptrdiff_t D, int64_t padding_idx,
                               ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t column, ptrdiff_t column_end) {
    ptrdiff_t width = column_end - column;
    if (width == D) memset(dweight + row * D, 0, (size_t)(row_end - row) * (size_t)D * sizeof(real));
    else
        for (ptrdiff_t v = row; v < row_end; v++) memset(dweight + v * D + column, 0, (size_t)width * sizeof(real));
    for (ptrdiff_t i = 0; i < n; i++)
        if (ids[i] >= row && ids[i] < row_end && ids[i] != padding_idx)
            embedding_add_row(dweight + ids[i] * D + column, dy + i * D + column, width);
}
