// Gradients of the mixture. For an expert with inner activations h, down projection D and weight w, and g = w dout D the
// gradient by h, w times the derivative by the weight is h . g, and the gradient by D is (w dout)^T h: with rows of dout
// weighed first, neither the experts' outputs nor their weights are needed behind them.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif

// Eight values, as they are read and written at once.
struct Eight {
    float at[8];
};

__device__ __forceinline__ Eight load_eight(const float* from) {
    Eight x;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        float4 four = *reinterpret_cast<const float4*>(from + i);
        x.at[i] = four.x, x.at[i + 1] = four.y, x.at[i + 2] = four.z, x.at[i + 3] = four.w;
    }
    return x;
}
__device__ __forceinline__ Eight load_eight(const bf16* from) {
    uint4 pairs = *reinterpret_cast<const uint4*>(from);
    return {low_float(pairs.x), high_float(pairs.x), low_float(pairs.y), high_float(pairs.y),
            low_float(pairs.z), high_float(pairs.z), low_float(pairs.w), high_float(pairs.w)};
}
__device__ __forceinline__ void store_eight(float* to, const Eight& x) {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        *reinterpret_cast<float4*>(to + i) = make_float4(x.at[i], x.at[i + 1], x.at[i + 2], x.at[i + 3]);
}
__device__ __forceinline__ void store_eight(bf16* to, const Eight& x) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3]), pack_bf16(x.at[4], x.at[5]),
                   pack_bf16(x.at[6], x.at[7]));
}

__device__ __forceinline__ void store_times(A* to, float factor, Eight x) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x.at[i] *= factor;
    store_eight(to, x);
}

// A warp a row: dout[t] times the weight of each of the token's choices, at the choice's place; with a shared MLP, whose
// part is c, times 1 - c as well, and c dout[t] as row t of `shared`.
extern "C" __global__ void __launch_bounds__(256) weigh(
    const A* dout, const int* places, const float* weights, const float* coefficients, A* out, A* shared, int rows,
    int width, int choices) {
    constexpr int AT_ONCE = 6;
    wait_for_previous();
    let_next_start();
    i64 t = i64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (t >= rows) return;
    float part = coefficients ? sigmoid(coefficients[t]) : 0.0f;
    for (int first = 8 * (threadIdx.x % 32); first < width; first += 256 * AT_ONCE) {
        Eight x[AT_ONCE];
        auto for_columns = [&](auto body) {
#pragma unroll
            for (int n = 0; n < AT_ONCE; ++n)
                if (first + 256 * n < width) body(x[n], first + 256 * n);
        };
        for_columns([&](Eight& x, int i) { x = load_eight(dout + t * width + i); });
        for (int choice = 0; choice < choices; ++choice) {
            i64 place = places[t * choices + choice];
            if (place < 0) continue;
            float weight = weights[t * choices + choice] * (1.0f - part);
            for_columns([&](const Eight& x, int i) { store_times(out + place * width + i, weight, x); });
        }
        if (shared) for_columns([&](const Eight& x, int i) { store_times(shared + t * width + i, part, x); });
    }
}

// A block a row: from gates and ups `pre`, which take turns in groups of 8, and the gradient g by the inner activations h,
// to the gradient by `pre` and to h . g.
extern "C" __global__ void swiglu_backward(const A* pre, const A* g, const int* end, int width, A* dpre, float* dots) {
    __shared__ float partial[32];
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    if (end && row >= *end) return;
    pre += row * 2 * width, g += row * width, dpre += row * 2 * width;
    float sum = 0.0f;
    for (int i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
        Eight gate = load_eight(pre + 2 * i), up = load_eight(pre + 2 * i + 8), slope = load_eight(g + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float open = sigmoid(gate.at[j]), value = gate.at[j] * open, d = slope.at[j];
            sum = fmaf(value * up.at[j], d, sum);
            gate.at[j] = d * up.at[j] * (open * fmaf(gate.at[j], 1.0f - open, 1.0f));
            up.at[j] = d * value;
        }
        store_eight(dpre + 2 * i, gate);
        store_eight(dpre + 2 * i + 8, up);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float all = 0.0f;
    for (int i = 0; i < int(blockDim.x) / 32; ++i) all += partial[i];
    dots[row] = all;
}

// Through out = moe (1 - c) + shared c, where c is a sigmoid: the derivative by it before the sigmoid. The sum of the dots
// is 1 - c times that by 1 - c, the shared one c times that by c.
extern "C" __global__ void __launch_bounds__(256) shared_backward(
    const int* places, const float* dots, const float* shared_dots, const float* coefficients, float* dcoefficients,
    int rows, int choices) {
    wait_for_previous();
    let_next_start();
    int t = blockIdx.x * 256 + threadIdx.x;
    if (t >= rows) return;
    float c = sigmoid(coefficients[t]), moe = 0.0f;
    for (int i = t * choices; i < (t + 1) * choices; ++i)
        if (places[i] >= 0) moe += dots[places[i]];
    dcoefficients[t] = (1.0f - c) * shared_dots[t] - c * moe;
}

// A warp a row: the gradient by the router's logits, from the derivatives by the weights of the chosen ones times those.
// The weights are a softmax; a single choice has none, to the bit. The load-balancing loss adds p_e (slope_e - mean), with
// the mean of the slopes under p.
extern "C" __global__ void __launch_bounds__(256) router_backward(
    const float* logits, const int* chosen, const float* weights, const int* places, const float* dots,
    const float* slopes, float* dlogits, int rows, int experts, int choices) {
    wait_for_previous();
    let_next_start();
    int t = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (t >= rows) return;
    logits += i64(t) * experts;
    float mean = 0.0f;
    for (int i = t * choices; i < (t + 1) * choices; ++i)
        if (places[i] >= 0) mean += dots[places[i]];
    float most = MINUS_INFINITY, total = 0.0f, slope = 0.0f;
    if (slopes) {
        for (int e = lane; e < experts; e += 32) most = fmaxf(most, logits[e]);
        most = warp_max(most);
        for (int e = lane; e < experts; e += 32) {
            float p = expf(logits[e] - most);
            total += p;
            slope = fmaf(p, slopes[e], slope);
        }
        total = warp_sum(total);
        slope = warp_sum(slope) / total;
    }
    for (int e = lane; e < experts; e += 32) {
        float d = 0.0f;
        for (int i = t * choices; i < (t + 1) * choices; ++i)
            if (chosen[i] == e && places[i] >= 0) d = dots[places[i]] - weights[i] * mean;
        if (slopes) d += expf(logits[e] - most) / total * (slopes[e] - slope);
        dlogits[i64(t) * experts + e] = d;
    }
}

// Adds a layer to the sums of probabilities, [blocks, experts] with 64 rows a block, and to the choices of each expert.
extern "C" __global__ void __launch_bounds__(256) balance_add(
    const float* logits, const int* offsets, double* parts, i64* counts, int rows, int experts) {
    extern __shared__ double sums[];
    wait_for_previous();
    let_next_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    double* own = sums + warp * experts;
    for (int e = lane; e < experts; e += 32) own[e] = 0.0;
    for (int t = blockIdx.x * 64 + warp; t < min(rows, (int(blockIdx.x) + 1) * 64); t += 8) {
        const float* row = logits + i64(t) * experts;
        float most = MINUS_INFINITY, total = 0.0f;
        for (int e = lane; e < experts; e += 32) most = fmaxf(most, row[e]);
        most = warp_max(most);
        for (int e = lane; e < experts; e += 32) total += expf(row[e] - most);
        total = warp_sum(total);
        for (int e = lane; e < experts; e += 32) own[e] += double(expf(row[e] - most) / total);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += 256) {
        double sum = 0.0;
        for (int w = 0; w < 8; ++w) sum += sums[w * experts + e];
        parts[i64(blockIdx.x) * experts + e] += sum;
        if (blockIdx.x == 0) counts[e] += offsets[e + 1] - offsets[e];
    }
}

// slopes[e] = scale * counts[e].
extern "C" __global__ void __launch_bounds__(256) balance_slopes(
    const i64* counts, float* slopes, int experts, float scale) {
    wait_for_previous();
    let_next_start();
    for (int e = threadIdx.x; e < experts; e += 256) slopes[e] = float(double(scale) * double(counts[e]));
}
