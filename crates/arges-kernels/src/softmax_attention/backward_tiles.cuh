// What the kernels of gradients on tensor cores share, besides panels.cuh.

constexpr int STEPS = HEAD_DIM / 16;
// 64 rows of a head in shared memory.
constexpr int MATRIX = HEAD_DIM / 64 * PANEL;

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float power_of_two(float x) {
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

// Starts d = a b^T over the channels of 64 rows each.
__device__ __forceinline__ void start_scores(float (&d)[32], u32 a, u32 b) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) multiply(d, channels(a, step), channels(b, step), step > 0);
    commit_products();
}

// The same with the left operand in registers.
__device__ __forceinline__ void start_scores(float (&d)[32], const u32 (&a)[STEPS][4], u32 b) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) multiply(d, a[step], channels(b, step), step > 0);
    commit_products();
}

// The accumulators of 64 by 64 values as left operands.
__device__ __forceinline__ void pack(u32 (&left)[4][4], const float (&x)[32]) {
#pragma unroll
    for (int i = 0; i < 16; i++) left[i / 4][i % 4] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

// Starts d += left b, over 64 rows of b.
__device__ __forceinline__ void start_sums(float (&d)[HEAD_DIM / 2], const u32 (&left)[4][4], u32 b) {
#pragma unroll
    for (int step = 0; step < 4; step++) multiply_rows(d, left[step], tokens(b, step));
    commit_products();
}

// Stores a thread's part of gradients, of row `lane / 4` (h = 0) or 8 more (h = 1), at `to`; turned back by the angles of
// that row of the batch where they are of queries or keys.
template <bool TURNED>
__device__ __forceinline__ void store_row(bf16* to, float (&x)[HEAD_DIM / 2], int h, float scale, const float* angles) {
    const int column = threadIdx.x % 4 * 2;
    if (TURNED) {
#pragma unroll
        for (int t = 0; t < PAIRS / 8; t++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float& low = x[4 * t + 2 * h + j];
                float& high = x[4 * (t + PAIRS / 8) + 2 * h + j];
                const float cosine = angles[t * 8 + column + j], sine = angles[PAIRS + t * 8 + column + j];
                const float turned = low * cosine + high * sine;
                high = high * cosine - low * sine;
                low = turned;
            }
        }
    }
#pragma unroll
    for (int t = 0; t < HEAD_DIM / 8; t++) {
        *reinterpret_cast<u32*>(to + t * 8 + column) = pack_bf16(x[4 * t + 2 * h] * scale, x[4 * t + 2 * h + 1] * scale);
    }
}

// `scale` is that of the scores.
#define ARGUMENTS                                                                                                     \
    const Span *spans, int span_count, int rows, const int *tables, int table_stride, int slots, int page_count,      \
        int kv_heads, const bf16 *projected, i64 stride, const bf16 *pages, const bf16 *dout, const float *lse,       \
        const float *delta, const float *angles, float scale, bf16 *dprojected
