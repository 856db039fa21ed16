// Products on the ordinary cores, of f32 or bf16 rows with f32 or bf16 weights: for f32 models, for shapes that the
// copy engine cannot take and for cards before and after Hopper. A block makes 64 rows by 64 outputs; every element is
// one chain of fused multiply-adds along K in ascending order.

#if ROWS_BF16
typedef bf16 X;
#else
typedef float X;
#endif
#if WEIGHTS_BF16
typedef bf16 W;
#else
typedef float W;
#endif

enum Epilogue { STORE_F32, STORE_ROUNDED, STORE_ACTIVATED, STORE_GATED };

constexpr int SIDE = 64;
constexpr int DEPTH = 16;

// `out` holds f32 where the epilogue is STORE_F32 and X otherwise. Where `before` is not null it takes the product itself,
// in rows of `outputs`.
extern "C" __global__ void __launch_bounds__(256) product(
    const W* weights, const X* x, void* out, X* before, const int* offsets, int rows, int outputs, int k, int stride,
    int epilogue, int activated) {
    __shared__ float a[DEPTH][SIDE + 4], b[DEPTH][SIDE + 4];
    wait_for_previous();
    let_next_start();
    int expert = blockIdx.z;
    int begin = offsets ? offsets[expert] : 0, end = offsets ? offsets[expert + 1] : rows;
    int first = begin + blockIdx.y * SIDE, output = blockIdx.x * SIDE;
    if (first >= end) return;
    weights += i64(expert) * outputs * k;
    int column = threadIdx.x % 16, line = threadIdx.x / 16;
    float d[4][4] = {};
    for (int start = 0; start < k; start += DEPTH) {
        for (int i = threadIdx.x; i < SIDE * DEPTH; i += 256) {
            int depth = i % DEPTH, row = i / DEPTH;
            bool inside = start + depth < k;
            bool has_row = inside && first + row < end, has_output = inside && output + row < outputs;
            a[depth][row] = has_row ? to_float(x[i64(first + row) * k + start + depth]) : 0.0f;
            b[depth][row] = has_output ? to_float(weights[i64(output + row) * k + start + depth]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            float4 left = *reinterpret_cast<float4*>(&a[depth][4 * line]);
            float4 right = *reinterpret_cast<float4*>(&b[depth][4 * column]);
            float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) d[i][j] = fmaf(l[i], r[j], d[i][j]);
        }
        __syncthreads();
    }
    // Gates and up projections stand in groups of 8 in turn, so that the partner of an output is two threads away.
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int t = first + 4 * line + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float partner = __shfl_down_sync(~0u, d[i][j], 2);
            int n = output + 4 * column + j;
            if (t >= end || n >= outputs) continue;
            if (before) before[i64(t) * outputs + n] = from_float<X>(d[i][j]);
            if (epilogue == STORE_F32) {
                static_cast<float*>(out)[i64(t) * stride + n] = d[i][j];
            } else if (epilogue == STORE_GATED) {
                if (n % 16 < 8) {
                    int inner = n / 16 * 8 + n % 8;
                    static_cast<X*>(out)[i64(t) * stride + inner] = from_float<X>(silu(d[i][j]) * partner);
                }
            } else {
                float value = d[i][j];
                if (epilogue == STORE_ACTIVATED) value = n < activated ? silu(value) : sigmoid(value);
                static_cast<X*>(out)[i64(t) * stride + n] = from_float<X>(value);
            }
        }
    }
}
