// Low-rank adapters: weights with them added, and their gradients on the way from a stack to the place of each.

// Rows and columns of a tile of weights, and the values of the rank that it takes at a time.
constexpr int ROWS = 64, COLUMNS = 128, DEPTH = 8;
// Gates and ups of a gated matrix stand in turn in groups of so many.
constexpr int GROUP = 8;

// An adapter of `rows` rows of a matrix, from row `first` on. Addresses: of the base's rows, of the matrix, of where A
// stands rounded, and of where B's columns stand rounded in rows of `stride`. Places among the values: of A [rank, cols]
// and B [rows, rank]; of their gradients in the stack's, B's in rows of `stride`.
struct Adapter {
    u64 base, merged, down, up;
    i64 a, b, from_a, from_b, first_tile;
    int rows, cols, first, gates, stride, base_rounded;
};

// The adapter of a tile: the last one that begins with it or before.
__device__ __forceinline__ Adapter adapter_of(const Adapter* adapters, int count, i64 tile) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (adapters[middle].first_tile <= tile) low = middle;
        else high = middle - 1;
    }
    return adapters[low];
}

// Where row n of a matrix stands that has `gates` gates and as many ups; without gates, at n.
__device__ __forceinline__ int place_of(int n, int gates) {
    if (gates == 0) return n;
    int up = n >= gates, i = n - up * gates;
    return i / GROUP * 2 * GROUP + up * GROUP + i % GROUP;
}

__device__ __forceinline__ float4 four(const float* x) { return *reinterpret_cast<const float4*>(x); }
__device__ __forceinline__ float4 four(const bf16* x) {
    uint2 packed = *reinterpret_cast<const uint2*>(x);
    return make_float4(low_float(packed.x), high_float(packed.x), low_float(packed.y), high_float(packed.y));
}
__device__ __forceinline__ void write_four(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void write_four(bf16* to, float4 x) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
}

// merged = base + sums for four columns from `column` on.
template <typename W, typename Base>
__device__ __forceinline__ void add_base(const Base* base, W* merged, const float (&sums)[4], int column, int cols) {
    if (cols % 4 == 0) {
        if (column >= cols) return;
        float4 x = four(base + column);
        x.x += sums[0], x.y += sums[1], x.z += sums[2], x.w += sums[3];
        write_four(merged + column, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (column + i < cols) merged[column + i] = from_float<W>(to_float(base[column + i]) + sums[i]);
}

// Asks for a tile of the base while its sums are made.
__device__ __forceinline__ void prefetch_base(const Adapter& it, int row0, int column0) {
    int size = it.base_rounded ? 2 : 4, lines = COLUMNS * size / 128;
    for (int i = threadIdx.x; i < ROWS * lines; i += 256) {
        int row = row0 + i / lines, column = column0 + i % lines * (128 / size);
        if (row < it.rows && column < it.cols)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(it.base + (u64(row) * it.cols + column) * size));
    }
}

// A tile of base + (scale B) A, rounded to W: sums over ascending rank in f32. The first tiles write A and B too, rounded
// to W, where products for gradients read them.
template <typename W>
__device__ __forceinline__ void merge(
    const Adapter* adapters, int count, const float* values, int rank, float scale) {
    __shared__ __align__(16) float left[DEPTH][ROWS + 4], right[DEPTH][COLUMNS + 4];
    Adapter it = adapter_of(adapters, count, blockIdx.x);
    int across = (it.cols + COLUMNS - 1) / COLUMNS, tile = int(blockIdx.x - it.first_tile);
    int row0 = tile / across * ROWS, column0 = tile % across * COLUMNS;
    prefetch_base(it, row0, column0);
    const float *a = values + it.a, *b = values + it.b;
    W *down = reinterpret_cast<W*>(it.down), *up = reinterpret_cast<W*>(it.up);
    int line = threadIdx.x / 16, column = threadIdx.x % 16;
    float sums[4][2][4] = {};
    // What a thread brings of B and of A: values of one k, of rows some apart; and of one column, of ks some apart.
    constexpr int OF_B = ROWS * DEPTH / 256, OF_A = COLUMNS * DEPTH / 256;
    int b_k = threadIdx.x % DEPTH, b_row = threadIdx.x / DEPTH;
    int a_k = threadIdx.x / COLUMNS, a_column = threadIdx.x % COLUMNS;
    float next_b[OF_B], next_a[OF_A];
    auto fetch = [&](int begin) {
#pragma unroll
        for (int i = 0; i < OF_B; ++i) {
            int row = row0 + b_row + i * (256 / DEPTH), k = begin + b_k;
            next_b[i] = row < it.rows && k < rank ? b[i64(row) * rank + k] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < OF_A; ++i) {
            int k = begin + a_k + i * (256 / COLUMNS), c = column0 + a_column;
            next_a[i] = k < rank && c < it.cols ? a[i64(k) * it.cols + c] : 0.0f;
        }
    };
    fetch(0);
#pragma unroll 1
    for (int begin = 0; begin < rank; begin += DEPTH) {
#pragma unroll
        for (int i = 0; i < OF_B; ++i) {
            int row = b_row + i * (256 / DEPTH), k = begin + b_k;
            left[b_k][row] = scale * next_b[i];
            if (column0 == 0 && row0 + row < it.rows && k < rank)
                up[i64(place_of(it.first + row0 + row, it.gates)) * it.stride + k] = from_float<W>(next_b[i]);
        }
#pragma unroll
        for (int i = 0; i < OF_A; ++i) {
            int in_tile = a_k + i * (256 / COLUMNS), k = begin + in_tile, c = column0 + a_column;
            right[in_tile][a_column] = next_a[i];
            if (row0 == 0 && k < rank && c < it.cols) down[i64(k) * it.cols + c] = from_float<W>(next_a[i]);
        }
        __syncthreads();
        // The next ones come while these are multiplied.
        if (begin + DEPTH < rank) fetch(begin + DEPTH);
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            float4 l = four(&left[k][4 * line]);
            float4 r[2] = {four(&right[k][4 * column]), four(&right[k][COLUMNS / 2 + 4 * column])};
            float factors[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    float(&sum)[4] = sums[i][j];
                    sum[0] = fmaf(factors[i], r[j].x, sum[0]);
                    sum[1] = fmaf(factors[i], r[j].y, sum[1]);
                    sum[2] = fmaf(factors[i], r[j].z, sum[2]);
                    sum[3] = fmaf(factors[i], r[j].w, sum[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int row = row0 + 4 * line + i;
        if (row >= it.rows) continue;
        W* merged = reinterpret_cast<W*>(it.merged) + i64(place_of(it.first + row, it.gates)) * it.cols;
        i64 before = i64(row) * it.cols;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            int c = column0 + j * COLUMNS / 2 + 4 * column;
            if (it.base_rounded)
                add_base(reinterpret_cast<const bf16*>(it.base) + before, merged, sums[i][j], c, it.cols);
            else add_base(reinterpret_cast<const float*>(it.base) + before, merged, sums[i][j], c, it.cols);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 3) merge_f32(
    const Adapter* adapters, int count, const float* values, int rank, float scale) {
    merge<float>(adapters, count, values, rank, scale);
}

extern "C" __global__ void __launch_bounds__(256, 3) merge_bf16(
    const Adapter* adapters, int count, const float* values, int rank, float scale) {
    merge<bf16>(adapters, count, values, rank, scale);
}

// Adds `scale` times the gradients of adapter blockIdx.y to its sums, from those of its stack. Fresh sums are overwritten.
extern "C" __global__ void __launch_bounds__(256) collect(
    const Adapter* adapters, const float* of_a, const float* of_b, float* sums, int rank, float scale, int fresh) {
    wait_for_previous();
    let_next_start();
    Adapter it = adapters[blockIdx.y];
    i64 in_a = i64(rank) * it.cols, all = in_a + i64(it.rows) * rank;
    for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < all; i += i64(gridDim.x) * 256) {
        bool a = i < in_a;
        int place = int(a ? i : i - in_a);
        float gradient =
            a ? of_a[it.from_a + place] : of_b[it.from_b + i64(place / rank) * it.stride + place % rank];
        float* sum = sums + (a ? it.a : it.b) + place;
        *sum = fmaf(scale, gradient, fresh ? 0.0f : *sum);
    }
}
