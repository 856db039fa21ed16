// Routing on the device: logits, choice, and the order of packed rows. Nothing here needs the host to know how many
// rows an expert gets.

#if ROUTER_BF16
typedef bf16 W;
#else
typedef float W;
#endif

constexpr int ROUTER_ROWS = 4;

__device__ __forceinline__ float4 load_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ __forceinline__ float4 load_four(const bf16* at) {
    uint2 pair = *reinterpret_cast<const uint2*>(at);
    return make_float4(low_float(pair.x), high_float(pair.x), low_float(pair.y), high_float(pair.y));
}

// logits[t, e] = x[t] . weights[e] in f32; a warp makes one expert's logits of 4 rows.
extern "C" __global__ void __launch_bounds__(256) router(
    const float* x, const W* weights, float* logits, int rows, int width, int experts) {
    wait_for_previous();
    let_next_start();
    int expert = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * ROUTER_ROWS;
    if (expert >= experts) return;
    float sums[ROUTER_ROWS] = {};
    const W* weight = weights + i64(expert) * width;
    for (int i = 4 * lane; i < width; i += 128) {
        float4 w = load_four(weight + i);
#pragma unroll
        for (int row = 0; row < ROUTER_ROWS; ++row) {
            // Rows beyond the end are the last once more, and not stored.
            float4 value = load_four(x + i64(min(first + row, rows - 1)) * width + i);
            sums[row] = fmaf(value.x, w.x, sums[row]);
            sums[row] = fmaf(value.y, w.y, sums[row]);
            sums[row] = fmaf(value.z, w.z, sums[row]);
            sums[row] = fmaf(value.w, w.w, sums[row]);
        }
    }
#pragma unroll
    for (int row = 0; row < ROUTER_ROWS; ++row) {
        float sum = warp_sum(sums[row]);
        if (lane == 0 && first + row < rows) logits[i64(first + row) * experts + expert] = sum;
    }
}

// The CHOICES largest logits of each row, best first and the lower expert among equals, and their softmax. Rows from
// `active` on choose no expert, which is written as `experts`.
extern "C" __global__ void choose(
    const float* logits, int* chosen, float* weights, int rows, const int* active, int experts) {
    wait_for_previous();
    let_next_start();
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= rows) return;
    float best[CHOICES];
    int which[CHOICES];
#pragma unroll
    for (int i = 0; i < CHOICES; ++i) best[i] = MINUS_INFINITY, which[i] = experts;
    if (t < *active) {
        for (int e = 0; e < experts; ++e) {
            float logit = logits[i64(t) * experts + e];
            int expert = e;
            bool shift = false;
#pragma unroll
            for (int i = 0; i < CHOICES; ++i) {
                // From its place on, everything moves down by one.
                shift = shift || logit > best[i] || which[i] == experts;
                if (shift) {
                    float other = best[i];
                    int other_expert = which[i];
                    best[i] = logit, which[i] = expert;
                    logit = other, expert = other_expert;
                }
            }
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = CHOICES - 1; i >= 0; --i) {
        best[i] = which[i] == experts ? 0.0f : expf(best[i] - best[0]);
        sum += best[i];
    }
#pragma unroll
    for (int i = 0; i < CHOICES; ++i) {
        chosen[t * CHOICES + i] = which[i];
        weights[t * CHOICES + i] = sum > 0.0f ? best[i] / sum : 0.0f;
    }
}

// The number of threads before this one in the block for which `flag` holds, and of all.
__device__ __forceinline__ int count_before(bool flag, int* counts, int& all) {
    u32 votes = __ballot_sync(~0u, flag);
    int warp = threadIdx.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0;
    all = 0;
    for (int i = 0; i < int(blockDim.x) / 32; ++i) {
        if (i < warp) before += counts[i];
        all += counts[i];
    }
    return before + __popc(votes & ((1u << threadIdx.x % 32) - 1));
}

// Puts choices in the order of experts, and within one in that of tokens: block e writes where the rows of expert e
// begin, the place of each of its choices, and the token of each of its rows. Choices of no expert get place -1.
// Experts that serve a row are added to `used`.
extern "C" __global__ void __launch_bounds__(1024) group(
    const int* chosen, int* offsets, int* places, int* sources, int choices, int experts, int* used) {
    __shared__ int counts[32];
    wait_for_previous();
    let_next_start();
    int expert = blockIdx.x, begin = 0, all;
    for (int start = 0; start < choices; start += blockDim.x) {
        int i = start + threadIdx.x;
        count_before(i < choices && chosen[i] < expert, counts, all);
        begin += all;
    }
    int next = begin;
    for (int start = 0; start < choices; start += blockDim.x) {
        int i = start + threadIdx.x;
        int which = i < choices ? chosen[i] : -1;
        int place = next + count_before(which == expert, counts, all);
        next += all;
        if (which == expert) {
            places[i] = place;
            sources[place] = i / CHOICES;
        } else if (expert == 0 && which == experts) {
            places[i] = -1;
        }
    }
    if (threadIdx.x == 0) {
        offsets[expert] = begin;
        if (next > begin) atomicAdd(used, 1);
        if (expert == experts - 1) offsets[experts] = next;
    }
}

// out[r] = x[sources[r]] for the packed rows, of `words` times 16 bytes.
extern "C" __global__ void gather(
    const uint4* x, const int* sources, const int* offsets, uint4* out, int experts, int words) {
    wait_for_previous();
    let_next_start();
    i64 row = blockIdx.x;
    if (row >= offsets[experts]) return;
    const uint4* from = x + i64(sources[row]) * words;
    for (int i = threadIdx.x; i < words; i += blockDim.x) out[row * words + i] = from[i];
}
