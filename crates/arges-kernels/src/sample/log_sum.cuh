// The logarithm of the sum of e^logit over a row, with one order of sums for whoever asks: sampling and training find the
// same bits. A row has ROW_PARTS parts, one behind the other. Of every PART_WARPS * 32 of a part's elements, each warp of a
// block has 32 in turn: its share.

constexpr int ROW_PARTS = 16;
constexpr int PART_WARPS = 16;

// sum * e^largest; {MINUS_INFINITY, 0} where there is nothing but impossible tokens.
struct ScaledSum {
    float largest;
    double sum;
};

__device__ __forceinline__ int part_begin(int vocabulary, int part) { return int(i64(vocabulary) * part / ROW_PARTS); }

// Rounding is spelled out, so that no compiler fuses what it does not fuse elsewhere.
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = __dadd_rn(x, __shfl_xor_sync(~0u, x, lane));
    return x;
}

// The sum of a warp's share of the part from `begin` to `end`, of which `largest` is the largest logit, in every lane.
__device__ __forceinline__ ScaledSum share_sum(const float* row, int begin, int end, float largest) {
    double sum = 0.0;
#pragma unroll 4
    for (int i = begin + threadIdx.x; i < end; i += PART_WARPS * 32) {
        sum = __dadd_rn(sum, double(expf(__fsub_rn(row[i], largest))));
    }
    sum = warp_sum(sum);
    return {largest, largest > MINUS_INFINITY ? sum : 0.0};
}

// Joins what the lanes of a warp hold, the same in every lane.
__device__ __forceinline__ ScaledSum join_sums(ScaledSum own) {
    float largest = warp_max(own.largest);
    double scale = exp(__dsub_rn(double(own.largest), double(largest)));
    double sum = own.largest > MINUS_INFINITY ? __dmul_rn(own.sum, scale) : 0.0;
    return {largest, warp_sum(sum)};
}

// The same of a list of at most 32.
__device__ __forceinline__ ScaledSum join_sums(const ScaledSum* list, int count) {
    int lane = threadIdx.x % 32;
    return join_sums(lane < count ? list[lane] : ScaledSum{MINUS_INFINITY, 0.0});
}

__device__ __forceinline__ double log_of(ScaledSum row) { return __dadd_rn(log(row.sum), double(row.largest)); }

__device__ __forceinline__ float logprob_of(float logit, double log_sum) {
    return float(__dsub_rn(double(logit), log_sum));
}
