// Gradients of gated norms; sums of parts; and rows that are scaled, moved and summed by token.

// Through out = gate * norm(x), where the gate has been through the sigmoid: writes the gradient by x and that by the
// gate before the sigmoid.
extern "C" __global__ void gated_norm_backward(
    const A* x, const A* gate, int gate_stride, const float* weight, float eps, int width, int rows, const A* dy,
    A* dx, A* dgate, float* parts) {
    extern __shared__ float dweight[];
    __shared__ float2 partial[32];
    wait_for_previous();
    let_next_start();
    for (int i = threadIdx.x; i < width; i += blockDim.x) dweight[i] = 0.0f;
    __syncthreads();
    int end = min(rows, (int(blockIdx.x) + 1) * ROWS);
    for (i64 t = blockIdx.x * ROWS; t < end; ++t) {
        float squares = 0.0f, along = 0.0f;
        for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            float4 value = load_four(x + t * width + i), open = load_four(gate + t * gate_stride + i);
            squares += sum_of(value * value);
            along += sum_of(load_four(dy + t * width + i) * open * load_four(weight + i) * value);
        }
        float2 sums = block_sums(squares, along, partial);
        float scale = rsqrtf(sums.x / width + eps), mean = sums.y / width * scale * scale;
        for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            float4 value = load_four(x + t * width + i), open = load_four(gate + t * gate_stride + i);
            float4 d = load_four(dy + t * width + i), u = d * open, w = load_four(weight + i);
            float4 shut = make_float4(1.0f - open.x, 1.0f - open.y, 1.0f - open.z, 1.0f - open.w);
            store_four(dgate + t * gate_stride + i, u * shut * (scale * value * w));
            store_four(dx + t * width + i, scale * (u * w + (-mean) * value));
            store_four(dweight + i, load_four(dweight + i) + scale * u * value);
        }
    }
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(parts + i64(blockIdx.x) * width + i, load_four(dweight + i));
}

// out[i] += the sum of parts[p, i] over p, of `width` values each: the first `split` of them in one place, the others in
// another; with `fresh`, over what was there. Blocks of 32 columns by 8 lines; line l adds up parts l, l + 8, ...
extern "C" __global__ void __launch_bounds__(256) add_rows(
    const float* parts, float* out, float* others, int split, int count, int width, int fresh) {
    __shared__ float sums[8][32];
    wait_for_previous();
    let_next_start();
    int column = threadIdx.x % 32, line = threadIdx.x / 32, i = blockIdx.x * 32 + column;
    float sum = 0.0f;
    if (i < width)
        for (int p = line; p < count; p += 8) sum += parts[i64(p) * width + i];
    sums[line][column] = sum;
    __syncthreads();
    if (line > 0 || i >= width) return;
    for (int l = 1; l < 8; ++l) sum += sums[l][column];
    float& to = i < split ? out[i] : others[i - split];
    to = fresh ? sum : to + sum;
}

// out = factor * x, rounded, four values a thread.
extern "C" __global__ void __launch_bounds__(256) scaled(const A* x, float factor, A* out, i64 count) {
    wait_for_previous();
    let_next_start();
    i64 i = 4 * (i64(blockIdx.x) * 256 + threadIdx.x);
    if (i < count) store_four(out + i, factor * load_four(x + i));
}

// out[r] = x[rows[r]], and the other way round.
extern "C" __global__ void gather_rows(const float* x, const int* rows, float* out, int width) {
    wait_for_previous();
    let_next_start();
    const float* from = x + i64(rows[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(out + i64(blockIdx.x) * width + i, load_four(from + i));
}

extern "C" __global__ void scatter_rows(const A* x, const int* rows, A* out, int width) {
    wait_for_previous();
    let_next_start();
    A* to = out + i64(rows[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(to + i, load_four(x + i64(blockIdx.x) * width + i));
}

// table[tokens[b]] += the sum of the rows of dx that order[begins[b]..begins[b + 1]] names: the rows of one token, in
// ascending order.
extern "C" __global__ void embedding_backward(
    const A* dx, const int* tokens, const int* begins, const int* order, float* table, int width) {
    wait_for_previous();
    let_next_start();
    int begin = begins[blockIdx.x], end = begins[blockIdx.x + 1];
    float* to = table + i64(tokens[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        float4 sum = load_four(to + i);
        for (int j = begin; j < end; ++j) sum = sum + load_four(dx + i64(order[j]) * width + i);
        store_four(to + i, sum);
    }
}
