// Routing on the device: logits, choice, and the order of packed rows. Nothing here needs the host to know how many
// rows an expert gets.

#if ACTIVATIONS_BF16
typedef bf16 A;
#else
typedef float A;
#endif
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

// logits[t, e] = x[t] . weights[e] in f32: a warp makes those of 4 rows for EXPERTS experts. The order of a sum is the
// same for any number of them.
template <int EXPERTS>
__device__ __forceinline__ void route(
    const A* x, const W* weights, float* logits, int rows, int width, int experts, int first, int expert) {
    int lane = threadIdx.x % 32;
    float sums[EXPERTS][ROUTER_ROWS] = {};
    // Rows and experts beyond the end are the last once more, and not stored.
    const A* row_of[ROUTER_ROWS];
    const W* weight_of[EXPERTS];
#pragma unroll
    for (int row = 0; row < ROUTER_ROWS; ++row) row_of[row] = x + i64(min(first + row, rows - 1)) * width;
#pragma unroll
    for (int e = 0; e < EXPERTS; ++e) weight_of[e] = weights + i64(min(expert + e, experts - 1)) * width;
#pragma unroll 4
    for (int i = 4 * lane; i < width; i += 128) {
        float4 w[EXPERTS];
#pragma unroll
        for (int e = 0; e < EXPERTS; ++e) w[e] = load_four(weight_of[e] + i);
#pragma unroll
        for (int row = 0; row < ROUTER_ROWS; ++row) {
            float4 value = load_four(row_of[row] + i);
#pragma unroll
            for (int e = 0; e < EXPERTS; ++e) {
                float sum = sums[e][row];
                sum = fmaf(value.x, w[e].x, sum);
                sum = fmaf(value.y, w[e].y, sum);
                sum = fmaf(value.z, w[e].z, sum);
                sums[e][row] = fmaf(value.w, w[e].w, sum);
            }
        }
    }
#pragma unroll
    for (int e = 0; e < EXPERTS; ++e) {
#pragma unroll
        for (int row = 0; row < ROUTER_ROWS; ++row) {
            float sum = warp_sum(sums[e][row]);
            if (lane == 0 && first + row < rows && expert + e < experts)
                logits[i64(first + row) * experts + expert + e] = sum;
        }
    }
}

// A warp makes one expert's logits.
extern "C" __global__ void __launch_bounds__(32) router_few(
    const A* x, const W* weights, float* logits, int rows, int width, int experts) {
    prefetch(weights + i64(blockIdx.y) * width, sizeof(W) * width);
    wait_for_previous();
    let_next_start();
    route<1>(x, weights, logits, rows, width, experts, blockIdx.x * ROUTER_ROWS, blockIdx.y);
}

// A warp makes eight experts' logits, as many warps as it takes those of 4 rows.
extern "C" __global__ void __launch_bounds__(256, 2) router_many(
    const A* x, const W* weights, float* logits, int rows, int width, int experts) {
    wait_for_previous();
    let_next_start();
    int warp = blockIdx.x * 8 + threadIdx.x / 32, of_rows = (experts + 7) / 8, first = warp / of_rows * ROUTER_ROWS;
    if (first < rows) route<8>(x, weights, logits, rows, width, experts, first, warp % of_rows * 8);
}

// The CHOICES largest logits of a row, best first and the lower expert among equals, and their softmax. A row that is
// not `active` chooses no expert, which is written as `experts`.
__device__ __forceinline__ void choose_row(
    const float* logits, int (&which)[CHOICES], float* weights, bool active, int experts) {
    float best[CHOICES];
#pragma unroll
    for (int i = 0; i < CHOICES; ++i) best[i] = MINUS_INFINITY, which[i] = experts;
    for (int e = 0; active && e < experts; ++e) {
        float logit = logits[e];
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
    float sum = 0.0f;
#pragma unroll
    for (int i = CHOICES - 1; i >= 0; --i) {
        best[i] = which[i] == experts ? 0.0f : expf(best[i] - best[0]);
        sum += best[i];
    }
#pragma unroll
    for (int i = 0; i < CHOICES; ++i) weights[i] = sum > 0.0f ? best[i] / sum : 0.0f;
}

// Choices of each row; rows from `active` on choose nobody.
extern "C" __global__ void choose(
    const float* logits, int* chosen, float* weights, int rows, const int* active, int experts) {
    wait_for_previous();
    let_next_start();
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= rows) return;
    int which[CHOICES];
    choose_row(logits + i64(t) * experts, which, weights + t * CHOICES, t < *active, experts);
#pragma unroll
    for (int i = 0; i < CHOICES; ++i) chosen[t * CHOICES + i] = which[i];
}

// Four choices from `i` on; those from `end` on are of no row, which no expert has.
__device__ __forceinline__ void load_choices(const int* chosen, int i, int end, int experts, int (&which)[4]) {
    if (i + 4 <= end) {
        int4 four = *reinterpret_cast<const int4*>(chosen + i);
        which[0] = four.x, which[1] = four.y, which[2] = four.z, which[3] = four.w;
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) which[j] = i + j < end ? chosen[i + j] : experts + 1;
}

// Puts choices in the order of experts, and within one in that of tokens: blocks (e, _) write where the rows of expert e
// begin, the place of each of its choices, and the token of each of its rows. Choices of no expert get place -1.
// Experts that serve a row are added to `used`. A block counts all choices of its expert and of those before it, and
// places a share of its own, of which a thread has some that lie together.
extern "C" __global__ void __launch_bounds__(1024) group(
    const int* chosen, int* offsets, int* places, int* sources, int choices, int experts, int* used) {
    // Of each warp: choices of experts before, of the own one in shares before this and in all, and in this share.
    __shared__ int4 counts[32];
    wait_for_previous();
    let_next_start();
    int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, threads = blockDim.x;
    auto whole_fours = [](int count, int by) { return (count + 4 * by - 1) / (4 * by) * 4; };
    int share = whole_fours(choices, gridDim.y), share_begin = min(int(blockIdx.y) * share, choices);
    int share_end = min(share_begin + share, choices), each = whole_fours(share, threads);
    int from = min(share_begin + int(threadIdx.x) * each, share_end), end = min(from + each, share_end);
    int less = 0, earlier = 0, all = 0, own = 0;
#pragma unroll 8
    for (int i = 4 * threadIdx.x; i < choices; i += 4 * threads) {
        int which[4];
        load_choices(chosen, i, choices, experts, which);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            less += which[j] < expert, all += which[j] == expert;
            earlier += i < share_begin && which[j] == expert;
        }
    }
    for (int i = from; i < end; i += 4) {
        int which[4];
        load_choices(chosen, i, end, experts, which);
#pragma unroll
        for (int j = 0; j < 4; ++j) own += which[j] == expert;
    }
    int before = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(~0u, before, step);
        if (lane >= step) before += other;
    }
    less = __reduce_add_sync(~0u, less), earlier = __reduce_add_sync(~0u, earlier), all = __reduce_add_sync(~0u, all);
    if (lane == 31) counts[warp] = make_int4(less, earlier, all, before);
    __syncthreads();
    int begin = 0, next = before - own, rows = 0;
    for (int w = 0; w < threads / 32; ++w) {
        int4 of_warp = counts[w];
        begin += of_warp.x, next += of_warp.y, rows += of_warp.z;
        if (w < warp) next += of_warp.w;
    }
    next += begin;
    for (int i = from; i < end; i += 4) {
        int which[4];
        load_choices(chosen, i, end, experts, which);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (which[j] == expert) {
                places[i + j] = next;
                sources[next] = (i + j) / CHOICES;
                next += 1;
            } else if (expert == 0 && which[j] == experts) {
                places[i + j] = -1;
            }
        }
    }
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        offsets[expert] = begin;
        if (rows > 0) atomicAdd(used, 1);
        if (expert == experts - 1) offsets[experts] = begin + rows;
    }
}

// `choose` and `group` for few rows, in one block: a warp orders the choices of one expert after the other.
constexpr int FEW_CHOICES = 1024;

extern "C" __global__ void __launch_bounds__(1024) choose_and_group(
    const float* logits, int* chosen, float* weights, int* offsets, int* places, int* sources, int rows,
    const int* active, int experts, int* used) {
    __shared__ int all[FEW_CHOICES];
    wait_for_previous();
    let_next_start();
    int choices = rows * CHOICES, t = threadIdx.x;
    if (t < rows) {
        int which[CHOICES];
        choose_row(logits + i64(t) * experts, which, weights + t * CHOICES, t < *active, experts);
#pragma unroll
        for (int i = 0; i < CHOICES; ++i) all[t * CHOICES + i] = chosen[t * CHOICES + i] = which[i];
    }
    __syncthreads();
    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < choices; i += blockDim.x)
        if (all[i] == experts) places[i] = -1;
    for (int expert = threadIdx.x / 32; expert < experts; expert += blockDim.x / 32) {
        int begin = 0;
        for (int start = 0; start < choices; start += 32) {
            int i = start + lane;
            begin += __popc(__ballot_sync(~0u, i < choices && all[i] < expert));
        }
        int next = begin;
        for (int start = 0; start < choices; start += 32) {
            int i = start + lane;
            bool own = i < choices && all[i] == expert;
            u32 votes = __ballot_sync(~0u, own);
            if (own) {
                int place = next + __popc(votes & ((1u << lane) - 1));
                places[i] = place;
                sources[place] = i / CHOICES;
            }
            next += __popc(votes);
        }
        if (lane == 0) {
            offsets[expert] = begin;
            if (next > begin) atomicAdd(used, 1);
            if (expert == experts - 1) offsets[experts] = next;
        }
    }
}

// out[r] = x[sources[r]] for the packed rows, of `words` times 16 bytes: a warp a row, whose reads are under way
// together.
extern "C" __global__ void __launch_bounds__(256) gather(
    const uint4* x, const int* sources, const int* offsets, uint4* out, int rows, int experts, int words) {
    constexpr int AT_ONCE = 6;
    wait_for_previous();
    let_next_start();
    i64 row = i64(blockIdx.x) * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    // The place is read beside the number of rows; it is of some row even where it is one of none.
    int source = sources[row], end = offsets[experts];
    if (row >= end) return;
    const uint4* from = x + i64(source) * words;
    out += row * words;
    for (int first = threadIdx.x % 32; first < words; first += 32 * AT_ONCE) {
        uint4 value[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (first + 32 * i < words) value[i] = from[first + 32 * i];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (first + 32 * i < words) out[first + 32 * i] = value[i];
    }
}
