// Gradients by weights on Hopper's tensor cores: sums over rows of products of two bf16 activations, for one matrix or for
// the experts', each of its own rows, added to f32 values. Blocks stay and take tile after tile.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

static_assert(CONSUMERS == 2 && !IN_TURN, "two warpgroups share registers and tiles");

// Squares are added up in f32 within a tile, widened as in adamw.cu: those of 1e-20 stay normal numbers.
constexpr float WIDEN = 1 << 20;

// Adds a warp's part of a tile to f32 values: as `store`, but for gradients, which add up. Gives the sum of the squares of
// the thread's new values, each times WIDEN. With `gates`, rows stand in turn in groups of 8: as many gates, and the ups
// behind all of them. Values are read some rows ahead of their sums, as each waits for memory; `fresh` ones count as zeros
// and are not read.
__device__ __forceinline__ float accumulate(
    const float (&d)[BLOCKS][ROWS / 2], float* out, int stride, int outputs, int row, int end, int output, int gates,
    bool fresh) {
    constexpr int AHEAD = 4;
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    int room = outputs - output - 16 * warp - lane / 4;
    out += output + 16 * warp + lane / 4;
    float squares = 0.0f;
#pragma unroll
    for (int first = 0; first < ROWS / 8; first += AHEAD) {
        float sums[AHEAD][2][BLOCKS][2];
#pragma unroll
        for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                int eight = row / 8 + first + i;
                int to_row = gates ? eight / 2 * 8 + eight % 2 * gates : eight * 8;
                float* to = out + i64(to_row + 2 * (lane % 4)) * stride;
#pragma unroll
                for (int j = 0; j < 2; ++j, to += stride) {
                    if (eight * 8 + 2 * (lane % 4) + j >= end) continue;
#pragma unroll
                    for (int which = 0; which < BLOCKS; ++which) {
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            if (room <= 64 * which + 8 * half) continue;
                            float* at = to + 64 * which + 8 * half;
                            if (pass == 0) sums[i][j][which][half] = fresh ? 0.0f : *at;
                            else {
                                float sum = sums[i][j][which][half] + d[which][4 * (first + i) + j + 2 * half];
                                *at = sum;
                                squares = fmaf(WIDEN * sum, WIDEN * sum, squares);
                            }
                        }
                    }
                }
            }
        }
    }
    return squares;
}

// The same for a tile to which nothing is added, which all threads share: rows `row` to `end` as they lie in memory.
__device__ __forceinline__ float add_nothing(float* out, int outputs, int row, int end, int output, bool fresh) {
    float squares = 0.0f;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * OUTPUTS; i += 128 * CONSUMERS) {
        int n = row + i / OUTPUTS, k = output + i % OUTPUTS;
        if (n >= end || k >= outputs) continue;
        float* at = out + i64(n) * outputs + k;
        if (fresh) *at = 0.0f;
        else squares = fmaf(WIDEN * *at, WIDEN * *at, squares);
    }
    return squares;
}

// part = the sum of what all threads that multiply have in `sums`, in a fixed order.
__device__ __forceinline__ void add_up(double* sums, double* part) {
    // `clear_behind` has barriers of its own, at which some may still be.
    auto await_all = [] { asm volatile("bar.sync 3, %0;" ::"n"(128 * CONSUMERS) : "memory"); };
    for (int half = 64 * CONSUMERS; half > 0; half /= 2) {
        await_all();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *part = sums[0];
}

// out[e, n, k] += sum over t of dy[n, t] x[k, t], t from offsets[e] to offsets[e + 1]: the gradients of the experts'
// weights [rows, outputs]. Turned, dy and x are rows of activations, [t, n] and [t, k]; else columns of them that lie as
// rows, and offsets are multiples of K_TILE. Without offsets there is one matrix and t goes to `depth`. Matrices of `out`
// are `out_stride` values apart. Behind their tiles come those of another matrix [other_rows, other_outputs] of no
// experts, whose gradient sums over t up to `depth` too: a few tiles alone would leave most of the card idle. Fresh values
// are overwritten, those of experts without rows too. squares[b] = the sum of the squares of all values that block b wrote,
// which are the gradients of all matrices.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gradient(
    const __grid_constant__ Map x, const __grid_constant__ Map dy, float* out, const int* offsets, int experts,
    int rows, int outputs, int depth, int gates, i64 out_stride, int fresh, const __grid_constant__ Map other_x,
    const __grid_constant__ Map other_dy, float* other_out, int other_rows, int other_outputs, double* squares) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ double sums[128 * CONSUMERS];
    __shared__ __align__(8) u64 barriers[BARRIERS];
    u32 tiles = (shared_address(shared) + 1023) & ~1023u;
    u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    init_stages(full, empty);
    wait_for_previous();
    let_next_start();

    int row_tiles = (rows + ROWS - 1) / ROWS, output_tiles = (outputs + OUTPUTS - 1) / OUTPUTS;
    int other_row_tiles = (other_rows + ROWS - 1) / ROWS, other_output_tiles = (other_outputs + OUTPUTS - 1) / OUTPUTS;
    int of_each = row_tiles * output_tiles, all = experts * of_each, others = other_row_tiles * other_output_tiles;
    // With an expert behind the last for the other matrix.
    auto each_tile = [&](auto body) {
        for (int tile = blockIdx.x; tile < all + others; tile += gridDim.x) {
            bool other = tile >= all;
            int expert = other ? experts : tile / of_each, local = other ? tile - all : tile % of_each;
            int begin = offsets && !other ? offsets[expert] : 0, end = offsets && !other ? offsets[expert + 1] : depth;
            int height = other ? other_rows : rows, row, output;
            place_tile(
                local, other ? other_row_tiles : row_tiles, other ? other_output_tiles : output_tiles, BAND, row, output);
            body(expert, begin, end, row, output, PARTIAL ? min(BOXES, (height - row + BOX - 1) / BOX) : BOXES);
        }
    };
    int group = threadIdx.x / 128, count = 0;
    if (group == CONSUMERS) {
        give_registers();
        if (threadIdx.x != 128 * CONSUMERS) return;
        each_tile([&](int expert, int begin, int end, int row, int output, int boxes) {
            const Map *from_x = expert == experts ? &other_x : &x, *from_dy = expert == experts ? &other_dy : &dy;
            for (int from = begin; from < end; from += K_TILE, ++count) {
                int stage = count % STAGES;
                u32 to = tiles + stage * STAGE_BYTES, barrier = full + 8 * stage;
                if (count >= STAGES) await(empty + 8 * stage, (count / STAGES - 1) & 1);
                expect_bytes(barrier, WEIGHT_BYTES + boxes * BOX_BYTES);
                if constexpr (WEIGHTS_TURNED && ROWS_TURNED) {
                    copy_columns(to, from_x, barrier, output, from, OUTPUTS / 64);
                    copy_columns(to + WEIGHT_BYTES, from_dy, barrier, row, from, boxes);
                } else {
                    copy_tile(to, from_x, barrier, from, output);
                    copy_rows(to + WEIGHT_BYTES, from_dy, barrier, from, row, boxes);
                }
            }
        });
    } else {
        take_registers();
        // Not in registers, of which tiles leave few.
        sums[threadIdx.x] = 0.0;
        auto add = [&](float widened) { sums[threadIdx.x] += widened / (double(WIDEN) * WIDEN); };
        each_tile([&](int expert, int begin, int end, int row, int output, int boxes) {
            if (begin >= end) {
                add(add_nothing(out + expert * out_stride, outputs, row, rows, output, fresh));
                return;
            }
            int steps = (end - begin + K_TILE - 1) / K_TILE, left = end - begin - (steps - 1) * K_TILE;
            float d[BLOCKS][ROWS / 2];
            multiply_boxes<BOXES>(boxes, d, tiles, full, empty, group, 0, steps, left, count);
            output += group * BLOCKS * 64;
            if (expert == experts)
                add(accumulate(d, other_out, other_outputs, other_outputs, row, other_rows, output, 0, fresh));
            else add(accumulate(d, out + expert * out_stride, outputs, outputs, row, rows, output, gates, fresh));
        });
        add_up(sums, squares + blockIdx.x);
    }
}

#endif
