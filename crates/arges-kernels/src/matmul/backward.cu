// What gradients of products need beside products: transposed weights, columns of activations as rows where they cannot
// be read as they lie, and, where there are no tensor cores for it, the gradient by the weights itself.

constexpr int TILE = 64;
// Padded rows of an expert are a multiple of so many: a step of the products along them belongs to one expert.
constexpr int STEP = 64;
// Gates and ups of a gated matrix stand in turn in groups of so many.
constexpr int GROUP = 8;

// Where value n of a row stands whose `gates` gates and as many ups take turns; without gates, at n.
__device__ __forceinline__ int column_of(int n, int gates) {
    if (gates == 0) return n;
    int up = n >= gates, i = n - up * gates;
    return i / GROUP * 2 * GROUP + up * GROUP + i % GROUP;
}

// out[e, c, r] = in[e, r, c] for matrices [rows, columns].
template <typename T> __device__ __forceinline__ void transpose(const T* in, T* out, int rows, int columns) {
    __shared__ T tile[TILE][TILE + 1];
    wait_for_previous();
    let_next_start();
    i64 matrix = i64(blockIdx.z) * rows * columns;
    int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    for (int i = threadIdx.x; i < TILE * TILE; i += blockDim.x) {
        int r = row + i / TILE, c = column + i % TILE;
        if (r < rows && c < columns) tile[i / TILE][i % TILE] = in[matrix + i64(r) * columns + c];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * TILE; i += blockDim.x) {
        int c = column + i / TILE, r = row + i % TILE;
        if (r < rows && c < columns) out[matrix + i64(c) * rows + r] = tile[i % TILE][i / TILE];
    }
}

extern "C" __global__ void __launch_bounds__(256) transpose_f32(const float* in, float* out, int rows, int columns) {
    transpose(in, out, rows, columns);
}

extern "C" __global__ void __launch_bounds__(256) transpose_u16(const u16* in, u16* out, int rows, int columns) {
    transpose(in, out, rows, columns);
}

// Where the padded rows of each expert begin, and the end.
extern "C" __global__ void __launch_bounds__(32) pad_offsets(const int* offsets, int* padded, int experts) {
    wait_for_previous();
    let_next_start();
    if (threadIdx.x > 0) return;
    int next = 0;
    for (int e = 0; e < experts; ++e) {
        padded[e] = next;
        next += (offsets[e + 1] - offsets[e] + STEP - 1) / STEP * STEP;
    }
    padded[experts] = next;
}

// out[n, p] = x[row of p, column n]: columns of bf16 rows as rows of `depth` values, in which the rows of every expert
// are padded with zeros to a multiple of STEP.
extern "C" __global__ void __launch_bounds__(256) columns_as_rows(
    const u16* x, u16* out, const int* offsets, const int* padded, int experts, int rows, int stride, int width,
    int gates, int depth) {
    __shared__ u16 tile[STEP][TILE + 2];
    wait_for_previous();
    let_next_start();
    int place = blockIdx.x * STEP, column = blockIdx.y * TILE;
    int begin = place, end = rows;
    if (offsets) {
        if (place >= padded[experts]) return;
        int low = 0, high = experts - 1;
        // The last expert that begins at `place` or before it: those without rows begin where the next one does.
        while (low < high) {
            int middle = (low + high + 1) / 2;
            if (padded[middle] <= place) low = middle;
            else high = middle - 1;
        }
        begin = offsets[low] + place - padded[low];
        end = offsets[low + 1];
    }
    for (int i = threadIdx.x; i < STEP * TILE; i += blockDim.x) {
        int r = begin + i / TILE, n = column + i % TILE;
        bool inside = r < end && n < width;
        tile[i / TILE][i % TILE] = inside ? x[i64(r) * stride + column_of(n, gates)] : u16(0);
    }
    __syncthreads();
    // Two values at a time: `depth` and `place` are multiples of STEP.
    for (int i = threadIdx.x; i < TILE * STEP / 2; i += blockDim.x) {
        int n = i / (STEP / 2), r = i % (STEP / 2) * 2;
        if (column + n >= width) continue;
        u32 pair = u32(tile[r][n]) | u32(tile[r + 1][n]) << 16;
        *reinterpret_cast<u32*>(out + i64(column + n) * depth + place + r) = pair;
    }
}

// out[e, n, k] += sum over the rows of expert e of dy[row, n] x[row, k], on the ordinary cores. With one matrix, block z
// takes rows from z * `part` on, as many, into out + z * rows_out * k. Fresh values are overwritten, those of experts
// without rows too.
template <typename T>
__device__ __forceinline__ void gradient(
    const T* dy, const T* x, float* out, const int* offsets, int rows, int dy_stride, int n_count, int x_stride,
    int k_count, int gates, i64 out_stride, int part, int fresh) {
    constexpr int DEPTH = 16;
    __shared__ float a[DEPTH][TILE + 4], b[DEPTH][TILE + 4];
    wait_for_previous();
    let_next_start();
    int z = blockIdx.z;
    int begin = offsets ? offsets[z] : z * part, end = offsets ? offsets[z + 1] : min(rows, (z + 1) * part);
    if (begin >= end && !fresh) return;
    int n0 = blockIdx.y * TILE, k0 = blockIdx.x * TILE;
    int column = threadIdx.x % 16, line = threadIdx.x / 16;
    float d[4][4] = {};
    for (int start = begin; start < end; start += DEPTH) {
        for (int i = threadIdx.x; i < DEPTH * TILE; i += 256) {
            int depth = i / TILE, c = i % TILE;
            bool inside = start + depth < end;
            i64 row = start + depth;
            a[depth][c] = inside && n0 + c < n_count ? to_float(dy[row * dy_stride + column_of(n0 + c, gates)]) : 0.0f;
            b[depth][c] = inside && k0 + c < k_count ? to_float(x[row * x_stride + k0 + c]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            float4 left = *reinterpret_cast<float4*>(&a[depth][4 * line]);
            float4 right = *reinterpret_cast<float4*>(&b[depth][4 * column]);
            float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) d[i][j] = fmaf(l[i], r[j], d[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        int n = n0 + 4 * line + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            int k = k0 + 4 * column + j;
            if (n >= n_count || k >= k_count) continue;
            float* at = out + z * out_stride + i64(n) * k_count + k;
            *at = (fresh ? 0.0f : *at) + d[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) gradient_f32(
    const float* dy, const float* x, float* out, const int* offsets, int rows, int dy_stride, int n_count,
    int x_stride, int k_count, int gates, i64 out_stride, int part, int fresh) {
    gradient(
        dy, x, out, offsets, rows, dy_stride, n_count, x_stride, k_count, gates, out_stride, part, fresh);
}

extern "C" __global__ void __launch_bounds__(256) gradient_bf16(
    const bf16* dy, const bf16* x, float* out, const int* offsets, int rows, int dy_stride, int n_count,
    int x_stride, int k_count, int gates, i64 out_stride, int part, int fresh) {
    gradient(
        dy, x, out, offsets, rows, dy_stride, n_count, x_stride, k_count, gates, out_stride, part, fresh);
}

// The same for up to 8 columns of dy from 8 blockIdx.y on, one matrix and f32: a thread takes 4 columns of x, block z rows
// from z * `part` on into out + z * n_count * k_count. Widths and strides of x are multiples of 4.
extern "C" __global__ void __launch_bounds__(128) gradient_few(
    const float* dy, const float* x, float* out, int rows, int dy_stride, int n_count, int x_stride, int k_count,
    int part) {
    constexpr int FEW = 8, AT_ONCE = 128;
    __shared__ __align__(16) float slopes[AT_ONCE][FEW];
    wait_for_previous();
    let_next_start();
    int k = 4 * (blockIdx.x * 128 + threadIdx.x), first = FEW * blockIdx.y;
    int begin = blockIdx.z * part, end = min(rows, begin + part);
    float4 sums[FEW] = {};
    for (int start = begin; start < end; start += AT_ONCE) {
        int count = min(AT_ONCE, end - start);
        __syncthreads();
        for (int i = threadIdx.x; i < count * FEW; i += 128) {
            int n = first + i % FEW;
            slopes[i / FEW][i % FEW] = n < n_count ? dy[i64(start + i / FEW) * dy_stride + n] : 0.0f;
        }
        __syncthreads();
        if (k >= k_count) continue;
        const float* from = x + i64(start) * x_stride + k;
#pragma unroll 8
        for (int row = 0; row < count; ++row) {
            float4 value = *reinterpret_cast<const float4*>(from + i64(row) * x_stride);
#pragma unroll
            for (int i = 0; i < FEW; ++i) {
                float d = slopes[row][i];
                sums[i].x = fmaf(d, value.x, sums[i].x);
                sums[i].y = fmaf(d, value.y, sums[i].y);
                sums[i].z = fmaf(d, value.z, sums[i].z);
                sums[i].w = fmaf(d, value.w, sums[i].w);
            }
        }
    }
    if (k >= k_count) return;
    out += i64(blockIdx.z) * n_count * k_count;
#pragma unroll
    for (int i = 0; i < FEW; ++i)
        if (first + i < n_count) *reinterpret_cast<float4*>(out + i64(first + i) * k_count + k) = sums[i];
}

// out[i] += the sum of `parts` values at partial[i + p * count], in ascending order of p. Fresh values are overwritten.
extern "C" __global__ void __launch_bounds__(256) add_parts(
    const float* partial, float* out, int count, int parts, int fresh) {
    wait_for_previous();
    let_next_start();
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    float sum = 0.0f;
    for (int p = 0; p < parts; ++p) sum += partial[i64(p) * count + i];
    out[i] = (fresh ? 0.0f : out[i]) + sum;
}
