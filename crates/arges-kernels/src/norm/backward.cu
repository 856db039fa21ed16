// Gradients of norms. With r = 1 / sqrt(mean(x^2) + eps) and u the gradient by x r weight:
// dx = r (u weight - x r^2 mean(u weight x)), and dweight is the sum over rows of u x r. A block takes ROWS rows one
// after the other and leaves its part of dweight; the parts are added in order.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

__device__ __forceinline__ float4 load_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ __forceinline__ float4 load_four(const bf16* at) {
    uint2 pair = *reinterpret_cast<const uint2*>(at);
    return make_float4(low_float(pair.x), high_float(pair.x), low_float(pair.y), high_float(pair.y));
}
__device__ __forceinline__ void store_four(float* at, float4 x) { *reinterpret_cast<float4*>(at) = x; }
__device__ __forceinline__ void store_four(bf16* at, float4 x) {
    *reinterpret_cast<uint2*>(at) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 operator*(float a, float4 b) {
    return make_float4(a * b.x, a * b.y, a * b.z, a * b.w);
}
__device__ __forceinline__ float sum_of(float4 x) { return (x.x + x.y) + (x.z + x.w); }

// Sums of two values over a block, the same in every thread, in an order that depends on the number of threads alone.
__device__ __forceinline__ float2 block_sums(float x, float y, float2* partial) {
    x = warp_sum(x);
    y = warp_sum(y);
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[warp] = make_float2(x, y);
    __syncthreads();
    float2 sum = make_float2(0.0f, 0.0f);
    for (int i = 0; i < warps; ++i) sum.x += partial[i].x, sum.y += partial[i].y;
    return sum;
}

// What goes past a block of the model, times alpha: its input, the normed input, or nothing.
enum Past { STREAM, NORMED, NOTHING };

// The last step back through a block of the model, whose input went through this norm. `dx` is the gradient by the
// block's output and becomes that by its input; `rounded` gets `beta` times that, the gradient by the output of what comes
// next. The gradient by the normed value is a sum: of rows of `product`; of a token's rows among `choice_rows`, in the
// order of its choices; of `more`; of `exact`; of `count` rows of `small`, each times one of `factors`; of one more such
// row. Null pointers stand for none.
extern "C" __global__ void norm_backward(
    const float* x, const float* weight, float eps, int width, int rows, float* dx, float alpha, int past,
    const A* product, const A* choice_rows, const int* places, int choices, const A* more, const float* exact,
    const float* factors, const float* small, int count, const float* coefficients, const float* coefficient_weight,
    float* parts, A* rounded, float beta) {
    extern __shared__ float shared[];
    __shared__ float2 partial[32];
    float *row = shared, *dweight = shared + width;
    wait_for_previous();
    let_next_start();
    for (int i = threadIdx.x; i < width; i += blockDim.x) dweight[i] = 0.0f;
    __syncthreads();
    int end = min(rows, (int(blockIdx.x) + 1) * ROWS);
    for (i64 t = blockIdx.x * ROWS; t < end; ++t) {
        float squares = 0.0f, along = 0.0f;
        for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            i64 at = t * width + i;
            float4 dy = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (past == NORMED) dy = alpha * load_four(dx + at);
            if (product) dy = dy + load_four(product + at);
            for (int choice = 0; choice < choices; ++choice) {
                int place = places[t * choices + choice];
                if (place >= 0) dy = dy + load_four(choice_rows + i64(place) * width + i);
            }
            if (more) dy = dy + load_four(more + at);
            if (exact) dy = dy + load_four(exact + at);
#pragma unroll 4
            for (int which = 0; which < count; ++which)
                dy = dy + factors[t * count + which] * load_four(small + i64(which) * width + i);
            if (coefficients) dy = dy + coefficients[t] * load_four(coefficient_weight + i);
            store_four(row + i, dy);
            float4 value = load_four(x + at);
            squares += sum_of(value * value);
            along += sum_of(dy * load_four(weight + i) * value);
        }
        float2 sums = block_sums(squares, along, partial);
        float scale = rsqrtf(sums.x / width + eps), mean = sums.y / width * scale * scale;
        for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
            i64 at = t * width + i;
            float4 dy = load_four(row + i), value = load_four(x + at);
            float4 d = scale * (dy * load_four(weight + i) + (-mean) * value);
            if (past == STREAM) d = alpha * load_four(dx + at) + d;
            store_four(dx + at, d);
            if (rounded) store_four(rounded + at, beta * d);
            store_four(dweight + i, load_four(dweight + i) + scale * dy * value);
        }
    }
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(parts + i64(blockIdx.x) * width + i, load_four(dweight + i));
}

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

// out[i] += the sum of parts[p, i] over p. Blocks of 32 columns by 8 lines; line l adds up parts l, l + 8, ...
extern "C" __global__ void __launch_bounds__(256) add_rows(const float* parts, float* out, int count, int width) {
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
    out[i] += sum;
}

// out = factor * x, rounded, four values a thread.
extern "C" __global__ void __launch_bounds__(256) scaled(const float* x, float factor, A* out, i64 count) {
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

extern "C" __global__ void scatter_rows(const float* x, const int* rows, float* out, int width) {
    wait_for_previous();
    let_next_start();
    float* to = out + i64(rows[blockIdx.x]) * width;
    for (int i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x)
        store_four(to + i, load_four(x + i64(blockIdx.x) * width + i));
}

// table[tokens[b]] += the sum of the rows of dx that order[begins[b]..begins[b + 1]] names: the rows of one token, in
// ascending order.
extern "C" __global__ void embedding_backward(
    const float* dx, const int* tokens, const int* begins, const int* order, float* table, int width) {
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
