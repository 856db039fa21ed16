// Cosines and sines for the rows of a step.

struct Span {
    int first, rows, position, slot;
};

// table [rows, 2, pairs]: cos and sin of position * frequency, rounded to f32 where the official tables round. A block
// has one row; rows of no span stay as they are.
extern "C" __global__ void __launch_bounds__(128)
angles(const Span* spans, int span_count, const float* frequencies, int pairs, float* table) {
    wait_for_previous();
    let_next_start();
    __shared__ int position;
    int row = blockIdx.x;
    if (threadIdx.x == 0) position = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < span_count; i += blockDim.x) {
        Span span = spans[i];
        if (span.slot >= 0 && row >= span.first && row - span.first < span.rows) {
            position = span.position + row - span.first;
        }
    }
    __syncthreads();
    if (position < 0) return;
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
        double sine, cosine;
        sincos(double(__fmul_rn(float(position), frequencies[i])), &sine, &cosine);
        table[i64(row) * 2 * pairs + i] = float(cosine);
        table[i64(row) * 2 * pairs + pairs + i] = float(sine);
    }
}
