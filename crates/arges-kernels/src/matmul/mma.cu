// Products of bf16 rows with bf16 weights on the tensor cores of cards that lack Hopper's wide ones: tiles come through
// asynchronous copies and are multiplied by warps. A block makes ROWS rows by OUTPUTS outputs; every element is one
// accumulator over K in ascending order, whatever the tile.

enum Epilogue { STORE_F32, STORE_ROUNDED, STORE_ACTIVATED, STORE_GATED };

// Values along K of a stage, in chunks of 16 bytes.
constexpr int DEPTH = 64;
constexpr int CHUNKS = DEPTH / 8;
constexpr int ROW_BYTES = DEPTH * 2;
constexpr int STAGE_BYTES = (ROWS + OUTPUTS) * ROW_BYTES;
constexpr int THREADS = 32 * ROW_WARPS * OUTPUT_WARPS;
// Tiles of 16 rows and of 8 outputs of a warp.
constexpr int ROW_TILES = ROWS / ROW_WARPS / 16;
constexpr int OUTPUT_TILES = OUTPUTS / OUTPUT_WARPS / 8;
static_assert(OUTPUT_TILES % 2 == 0, "gates and their partners are of one warp");

// Where a chunk of a row lies: rows of a tile that is read at once begin in different banks.
__device__ __forceinline__ u32 place(u32 tile, int row, int chunk) {
    return tile + row * ROW_BYTES + (chunk ^ (row & 7)) * 16;
}

__device__ __forceinline__ void copy_rows(u32 tile, const bf16* from, int count, int have, int start, int k) {
    for (int i = threadIdx.x; i < count * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS, at = start + chunk * 8;
        bool present = row < have && at < k;
        copy_async(place(tile, row, chunk), present ? from + i64(row) * k + at : from, present);
    }
}

__device__ __forceinline__ float finish(float value, int output, int epilogue, int activated) {
    if (epilogue == STORE_ACTIVATED) return output < activated ? silu(value) : sigmoid(value);
    return value;
}

// K is a multiple of 8. `out` holds f32 where the epilogue is STORE_F32 and bf16 otherwise. Where `before` is not null it
// takes the product itself, rounded, in rows of `outputs`.
extern "C" __global__ void __launch_bounds__(THREADS) product(
    const bf16* weights, const bf16* x, void* out, bf16* before, const int* offsets, int rows, int outputs, int k,
    int stride, int epilogue, int activated) {
    extern __shared__ __align__(128) char memory[];
    wait_for_previous();
    let_next_start();
    int expert = blockIdx.z;
    int begin = offsets ? offsets[expert] : 0, end = offsets ? offsets[expert + 1] : rows;
    int first = begin + blockIdx.y * ROWS, output = blockIdx.x * OUTPUTS;
    if (first >= end) return;
    weights += (i64(expert) * outputs + output) * k;
    x += i64(first) * k;
    int have_rows = min(end - first, ROWS), have_outputs = min(outputs - output, OUTPUTS);
    u32 shared = shared_address(memory);
    int steps = (k + DEPTH - 1) / DEPTH;
    auto fetch = [&](int step) {
        if (step < steps) {
            u32 stage = shared + step % STAGES * STAGE_BYTES;
            copy_rows(stage, x, ROWS, have_rows, step * DEPTH, k);
            copy_rows(stage + ROWS * ROW_BYTES, weights, OUTPUTS, have_outputs, step * DEPTH, k);
        }
        commit_copies();
    };
    for (int step = 0; step < STAGES - 1; ++step) fetch(step);

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_row = warp % ROW_WARPS * (ROW_TILES * 16), warp_output = warp / ROW_WARPS * (OUTPUT_TILES * 8);
    float d[ROW_TILES][OUTPUT_TILES][4] = {};
    for (int step = 0; step < steps; ++step) {
        await_copies<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        u32 x_tile = shared + step % STAGES * STAGE_BYTES, w_tile = x_tile + ROWS * ROW_BYTES;
#pragma unroll
        for (int part = 0; part < DEPTH / 16; ++part) {
            u32 a[ROW_TILES][4];
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                int row = warp_row + i * 16 + lane % 16;
                load_tiles(a[i], place(x_tile, row, part * 2 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < OUTPUT_TILES; j += 2) {
                u32 b[4];
                int row = warp_output + j * 8 + lane / 16 * 8 + lane % 8;
                load_tiles(b, place(w_tile, row, part * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < ROW_TILES; ++i) {
                    mma_bf16(d[i][j], a[i], b[0], b[1]);
                    mma_bf16(d[i][j + 1], a[i], b[2], b[3]);
                }
            }
        }
    }
    await_copies<0>();

    bool pairs = stride % 2 == 0;
#pragma unroll
    for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int row = warp_row + i * 16 + half * 8 + lane / 4;
            if (row >= have_rows) continue;
            i64 line = i64(first + row) * stride;
#pragma unroll
            for (int j = 0; j < OUTPUT_TILES; ++j) {
                int n = output + warp_output + j * 8 + lane % 4 * 2;
                if (n >= outputs) continue;
                float low = d[i][j][half * 2], high = d[i][j][half * 2 + 1];
                if (before) {
                    bf16* to = before + i64(first + row) * outputs + n;
                    to[0] = from_float<bf16>(low);
                    if (n + 1 < outputs) to[1] = from_float<bf16>(high);
                }
                if (epilogue == STORE_GATED) {
                    // Groups of 8 gates and of their 8 partners stand in turn.
                    if (j % 2) continue;
                    bf16* to = static_cast<bf16*>(out) + line + n / 16 * 8 + n % 8;
                    to[0] = from_float<bf16>(silu(low) * d[i][j + 1][half * 2]);
                    to[1] = from_float<bf16>(silu(high) * d[i][j + 1][half * 2 + 1]);
                } else if (epilogue == STORE_F32) {
                    float* to = static_cast<float*>(out) + line + n;
                    to[0] = low;
                    if (n + 1 < outputs) to[1] = high;
                } else {
                    bf16* to = static_cast<bf16*>(out) + line + n;
                    low = finish(low, n, epilogue, activated), high = finish(high, n + 1, epilogue, activated);
                    if (pairs && n + 1 < outputs) {
                        *reinterpret_cast<u32*>(to) = pack_bf16(low, high);
                    } else {
                        to[0] = from_float<bf16>(low);
                        if (n + 1 < outputs) to[1] = from_float<bf16>(high);
                    }
                }
            }
        }
}
