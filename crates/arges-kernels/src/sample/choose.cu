// Chooses a token from each row of logits. `choose_parts` finds the largest logit that may be chosen and the
// normaliser of the row, several blocks a row; `choose_join` joins them, and has the answer where it is the largest or a
// token that is only asked about; `choose_draw` draws for the others, one block a row.
//
// Weights of tokens are fixed-point numbers, e^((logit - largest) / temperature) in units of 2^-40, so that their sums do
// not depend on an order.

// How a row's token is chosen; the same as `Rule` of cuda.rs.
struct Rule {
    double uniform;      // where in the distribution to draw, in [0, 1)
    float temperature;   // 0: the largest
    float top_p, min_p;  // 1 and 0: all
    int top_k;           // 0: all
    int mask;            // index of the mask of tokens that may be chosen, or -1
    int token;           // at least 0: take this one
};

struct Best {
    float logit;
    int token;
};

// What is known of a row or a part of it: the largest of its logits that may be chosen, the sum of e^logit over all of it,
// and whether a logit is no number.
struct Part {
    Best best;
    ScaledSum sum;
    int broken;
};

#define NOTHING_ALLOWED -1
#define NOT_A_NUMBER -2

#define DRAW_THREADS 1024
#define DRAW_WARPS (DRAW_THREADS / 32)
#define TILES 256
#define BINS 256

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

__device__ __forceinline__ bool allows(const u32* mask, int token) {
    return mask == nullptr || (mask[token >> 5] >> (token & 31) & 1);
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        Best other = {__shfl_xor_sync(~0u, best.logit, lane), __shfl_xor_sync(~0u, best.token, lane)};
        best = better(best, other);
    }
    return best;
}

extern "C" __global__ void __launch_bounds__(PART_WARPS * 32)
    choose_parts(const float* logits, int vocabulary, int sampleable, const Rule* rules, const u32* masks,
                 int mask_words, Part* parts) {
    __shared__ Best bests[PART_WARPS];
    __shared__ ScaledSum sums[PART_WARPS];
    __shared__ int broken[PART_WARPS];
    wait_for_previous();
    let_next_start();
    const float* row = logits + i64(blockIdx.y) * vocabulary;
    int mask_index = rules[blockIdx.y].mask;
    const u32* mask = mask_index < 0 ? nullptr : masks + i64(mask_index) * mask_words;
    int begin = part_begin(vocabulary, blockIdx.x), end = part_begin(vocabulary, blockIdx.x + 1);
    // What cannot be chosen counts for the sum, and so for the logit that it is taken relative to, alone.
    float largest = MINUS_INFINITY;
    Best best = {MINUS_INFINITY, 0x7fffffff};
    bool bad = false;
#pragma unroll 4
    for (int i = begin + threadIdx.x; i < end; i += PART_WARPS * 32) {
        float logit = row[i];
        bad |= !(logit < -MINUS_INFINITY);
        largest = fmaxf(largest, logit);
        if (i < sampleable && allows(mask, i)) best = better(best, Best{logit, i});
    }
    ScaledSum own = share_sum(row, begin, end, warp_max(largest));
    best = warp_best(best);
    bad = __any_sync(~0u, bad);
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) bests[warp] = best, sums[warp] = own, broken[warp] = bad;
    __syncthreads();
    if (warp > 0) return;
    ScaledSum sum = join_sums(sums, PART_WARPS);
    if (threadIdx.x > 0) return;
    int any = 0;
    for (int i = 0; i < PART_WARPS; ++i) best = better(best, bests[i]), any |= broken[i];
    parts[blockIdx.y * ROW_PARTS + blockIdx.x] = {best, sum, any};
}

// Joins the parts of a row in the first of them, a warp a row.
extern "C" __global__ void choose_join(const float* logits, int vocabulary, const Rule* rules, Part* parts, int* tokens,
                                       float* logprobs, int rows) {
    wait_for_previous();
    let_next_start();
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    parts += i64(row) * ROW_PARTS;
    Part joined = lane < ROW_PARTS ? parts[lane] : Part{{MINUS_INFINITY, 0x7fffffff}, {MINUS_INFINITY, 0.0}, 0};
    joined.best = warp_best(joined.best);
    joined.sum = join_sums(joined.sum);
    joined.broken = __any_sync(~0u, joined.broken);
    if (lane > 0) return;
    parts[0] = joined;
    int asked = rules[row].token;
    int token = asked >= 0 ? asked : joined.best.token;
    float logit = asked >= 0 ? logits[i64(row) * vocabulary + asked] : joined.best.logit;
    if (asked < 0 && !(logit > MINUS_INFINITY)) token = NOTHING_ALLOWED;
    if (joined.broken || !(joined.sum.largest > MINUS_INFINITY)) token = NOT_A_NUMBER;
    tokens[row] = token;
    logprobs[row] = logprob_of(logit, log_of(joined.sum));
}

// Ascends with the logit; zeros of either sign are equal.
__device__ __forceinline__ u32 key_of(float logit) {
    u32 bits = __float_as_uint(logit + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 warp_total(u64 x) {
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// Everything above the key stays, and of the tokens that have it those up to an id.
struct Cut {
    u32 key;
    int last;
};

struct Row {
    const float* logits;
    const u32* mask;
    int count;
    float largest, inverse_temperature;

    __device__ __forceinline__ bool may(int token) const { return allows(mask, token); }

    __device__ __forceinline__ u64 weight(float logit) const {
        return u64(expf((logit - largest) * inverse_temperature) * 1099511627776.0f);
    }
};

__device__ __forceinline__ bool keeps(Cut cut, u32 key, int token) {
    return key > cut.key || (key == cut.key && token <= cut.last);
}

struct Shared {
    u64 tiles[TILES];
    u64 bins[BINS];
    u64 warps[DRAW_WARPS];
    u64 found;
    int index;
};

// The sum of `amount(token)` over every tile of the row into `shared.tiles`, and over the row.
template <typename Amount> __device__ u64 sum_tiles(int count, int tile, Shared& shared, Amount amount) {
    int lane = threadIdx.x % 32;
    __syncthreads();
    for (int t = threadIdx.x / 32; t < TILES; t += DRAW_WARPS) {
        u64 sum = 0;
        int end = min((t + 1) * tile, count);
        for (int i = t * tile + lane; i < end; i += 32) sum += amount(i);
        sum = warp_total(sum);
        if (lane == 0) shared.tiles[t] = sum;
    }
    __syncthreads();
    u64 all = 0;
    for (int t = lane; t < TILES; t += 32) all += shared.tiles[t];
    return warp_total(all);
}

// The first token at which the running sum of `amount`, whose tiles are summed, passes `target`.
template <typename Amount>
__device__ int first_past(int count, int tile, u64 target, Shared& shared, Amount amount) {
    if (threadIdx.x < 32) {
        int lane = threadIdx.x;
        u64 before = 0;
        int t = 0;
        while (t + 1 < TILES && before + shared.tiles[t] <= target) before += shared.tiles[t], ++t;
        // Lanes take equal runs of the tile's tokens; the runs' sums tell which has it.
        int run = tile / 32, begin = t * tile + lane * run;
        u64 sum = 0;
        for (int i = begin; i < begin + run; ++i)
            if (i < count) sum += amount(i);
        u64 upto = sum;
        for (int step = 1; step < 32; step <<= 1) {
            u64 other = __shfl_up_sync(~0u, upto, step);
            if (lane >= step) upto += other;
        }
        u32 past = __ballot_sync(~0u, before + upto > target);
        int chosen = past ? __ffs(past) - 1 : 31;
        if (lane == chosen) {
            u64 reached = before + upto - sum;
            int token = begin;
            for (int i = begin; i < begin + run && i < count; ++i) {
                u64 x = amount(i);
                if (x > 0) token = i;
                reached += x;
                if (reached > target) break;
            }
            shared.index = token;
        }
    }
    __syncthreads();
    return shared.index;
}

// The cut after the fewest tokens, by descending logit and ascending id, whose amounts reach `target`, which is above 0
// and at most their sum. `amount(token, key)` is the same for equal keys or 0. `histogram` has a bin for every lane, so that
// lanes do not meet.
template <typename Amount>
__device__ Cut find_cut(const Row& row, int tile, u64 target, u64* histogram, Shared& shared, Amount amount) {
    int lane = threadIdx.x % 32;
    u32 prefix = 0;
    u64 above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < BINS * 32; i += DRAW_THREADS) histogram[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.count; i += DRAW_THREADS) {
            u32 key = key_of(row.logits[i]);
            if (shift < 24 && key >> (shift + 8) != prefix) continue;
            u64 x = amount(i, key);
            if (x > 0) atomicAdd(&histogram[(key >> shift & (BINS - 1)) * 32 + lane], x);
        }
        __syncthreads();
        for (int bin = threadIdx.x / 32; bin < BINS; bin += DRAW_WARPS) {
            u64 sum = warp_total(histogram[bin * 32 + lane]);
            if (lane == 0) shared.bins[bin] = sum;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = BINS - 1;
            u64 reached = above;
            while (bin > 0 && reached + shared.bins[bin] < target) reached += shared.bins[bin], --bin;
            shared.index = bin;
            shared.found = reached;
        }
        __syncthreads();
        prefix = prefix << 8 | u32(shared.index);
        above = shared.found;
        __syncthreads();
    }
    // Of the tokens with that key, the first few.
    auto tied = [&](int i) {
        u32 key = key_of(row.logits[i]);
        return key == prefix ? amount(i, key) : 0ull;
    };
    sum_tiles(row.count, tile, shared, tied);
    int last = first_past(row.count, tile, target - above - 1, shared, tied);
    __syncthreads();
    return {prefix, last};
}

extern "C" __global__ void __launch_bounds__(DRAW_THREADS, 1)
    choose_draw(const float* logits, int vocabulary, int sampleable, const Rule* rules, const u32* masks,
                int mask_words, const Part* parts, int* tokens, float* logprobs) {
    extern __shared__ u64 histogram[];
    __shared__ Shared shared;
    wait_for_previous();
    let_next_start();
    Rule rule = rules[blockIdx.x];
    if (rule.temperature == 0.0f || rule.token >= 0 || tokens[blockIdx.x] < 0) return;
    Part joined = parts[i64(blockIdx.x) * ROW_PARTS];
    const u32* mask = rule.mask < 0 ? nullptr : masks + i64(rule.mask) * mask_words;
    Row row = {logits + i64(blockIdx.x) * vocabulary, mask, min(vocabulary, sampleable), joined.best.logit,
               1.0f / rule.temperature};
    int tile = (row.count + TILES * 32 - 1) / (TILES * 32) * 32;
    Cut cut = {0, 0};
    if (rule.top_k > 0 && rule.top_k < row.count) {
        auto one = [&](int i) { return u64(row.may(i) && row.logits[i] > MINUS_INFINITY); };
        u64 count = sum_tiles(row.count, tile, shared, one);
        if (u64(rule.top_k) < count)
            cut = find_cut(row, tile, rule.top_k, histogram, shared, [&](int i, u32) { return one(i); });
    }
    auto weight = [&](int i) {
        float logit = row.logits[i];
        return row.may(i) && keeps(cut, key_of(logit), i) ? row.weight(logit) : 0ull;
    };
    u64 mass = sum_tiles(row.count, tile, shared, weight);
    if (rule.top_p < 1.0f || rule.min_p > 0.0f) {
        if (rule.top_p < 1.0f) {
            u64 target = max(u64(ceil(double(rule.top_p) * double(mass))), 1ull);
            cut = find_cut(row, tile, min(target, mass), histogram, shared, [&](int i, u32) { return weight(i); });
        }
        u64 least = u64(double(rule.min_p) * 1099511627776.0);
        auto likely = [&](int i) {
            u64 x = weight(i);
            return x >= least ? x : 0ull;
        };
        mass = sum_tiles(row.count, tile, shared, likely);
        u64 target = min(u64(rule.uniform * double(mass)), mass - 1);
        int token = first_past(row.count, tile, target, shared, likely);
        if (threadIdx.x == 0) tokens[blockIdx.x] = token;
    } else {
        u64 target = min(u64(rule.uniform * double(mass)), mass - 1);
        int token = first_past(row.count, tile, target, shared, weight);
        if (threadIdx.x == 0) tokens[blockIdx.x] = token;
    }
    if (threadIdx.x == 0)
        logprobs[blockIdx.x] = logprob_of(row.logits[tokens[blockIdx.x]], log_of(joined.sum));
}
