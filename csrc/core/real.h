/* real.h - the floating-point type that a translation unit is compiled for: FSQ_F32 or FSQ_F64.
 *
 * FSQ_FN(op) is the name of an entry point or internal function for that type: fsq_op_f32 or fsq_op_f64. */
#ifndef FSQ_REAL_H
#define FSQ_REAL_H

#if defined FSQ_F32
typedef float real;
#define FSQ_FN(op) fsq_##op##_f32
#define FSQ_TABLE(isa) fsq_kernels_##isa##_f32
#elif defined FSQ_F64
typedef double real;
#define FSQ_FN(op) fsq_##op##_f64
#define FSQ_TABLE(isa) fsq_kernels_##isa##_f64
#else
#error "define FSQ_F32 or FSQ_F64"
#endif

#endif
