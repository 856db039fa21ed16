// Products of bf16 rows with bf16 weights on Hopper's tensor cores: y[t, n] = sum_k x[t, k] w[n, k], for one matrix or
// for the experts' at once, each with its own segment of rows.
//
// Weights are the operand of 64 rows and activations the one of N rows, so that the same kernel streams weights past
// one token and multiplies thousands. Blocks stay and take tile after tile, and the copies for the next begin while the
// last is multiplied. Products along outputs, for gradients, are of weights that lie across them (WEIGHTS_TURNED).
//
// Every output element is one accumulator that passes over K in ascending order, whatever the other rows and however
// many: its bits depend on its own row alone.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where only the boxes that hold rows are multiplied (PARTIAL), an expert's last tile, which is seldom full, comes apart
// from the full ones: blocks that take turns at tiles of one cost stay together, and find in the cache what the others have
// asked for.
constexpr int EXPERT_BAND = PARTIAL ? 2 : BAND;

// Walks through a block's tiles: of every expert, bands of row tiles; in a band, weights; for weights, row tiles.
struct Walk {
    const int* offsets;
    int experts, rows, output_tiles;
    int expert, begin, end, before, here;

    __device__ __forceinline__ Walk(const int* offsets, int experts, int rows, int outputs)
        : offsets(offsets), experts(experts), rows(rows), output_tiles((outputs + OUTPUTS - 1) / OUTPUTS), expert(-1),
          begin(0), end(0), before(0), here(0) {}

    // Moves on to the expert of `tile`; tiles are asked for in ascending order. False when there is none.
    __device__ __forceinline__ bool find(int tile) {
        while (tile >= before + here) {
            before += here;
            expert += 1;
            if (expert >= experts) return false;
            begin = offsets ? offsets[expert] : 0;
            end = offsets ? offsets[expert + 1] : rows;
            here = (end - begin + ROWS - 1) / ROWS * output_tiles;
        }
        return true;
    }

    // Boxes of rows that a tile from `row` on has.
    __device__ __forceinline__ int boxes(int row) const {
        return PARTIAL ? min(BOXES, (end - row + BOX - 1) / BOX) : BOXES;
    }

    // First row and first output of a tile that was found.
    __device__ __forceinline__ void place(int tile, int& row, int& output) const {
        int row_tiles = (end - begin + ROWS - 1) / ROWS;
        place_tile(tile - before, row_tiles, output_tiles, offsets ? EXPERT_BAND : BAND, row, output);
        row += begin;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) product(
    const __grid_constant__ Map weights, const __grid_constant__ Map tokens, void* out, bf16* before,
    const int* offsets, int experts, int rows, int outputs, int k, int stride, int epilogue, int activated,
    int row_limit) {
    extern __shared__ __align__(1024) char shared[];
    __shared__ __align__(8) u64 barriers[BARRIERS];
    u32 tiles = (shared_address(shared) + 1023) & ~1023u;
    u32 full = shared_address(barriers), empty = full + 8 * STAGES;
    init_stages(full, empty);

    int group = threadIdx.x / 128;
    int steps = (k + K_TILE - 1) / K_TILE;
    Walk walk(offsets, experts, rows, outputs);
    if (group == CONSUMERS) {
        if constexpr (IN_TURN) give_registers();
        if (threadIdx.x != 128 * CONSUMERS) return;
        // Weights do not change, or this kernel was not started early; and the offsets were written before the kernel
        // ahead of this one began: both may be read before that one has ended. Activations may not.
        bool waited = false;
        int count = 0;
        for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x) {
            int row, output;
            walk.place(tile, row, output);
            int line = walk.expert * (WEIGHTS_TURNED ? k : outputs), boxes = walk.boxes(row);
            for (int step = 0; step < steps; ++step, ++count) {
                int stage = count % STAGES;
                u32 weight_tile = tiles + stage * STAGE_BYTES, barrier = full + 8 * stage;
                if (count >= STAGES) await(empty + 8 * stage, (count / STAGES - 1) & 1);
                expect_bytes(barrier, WEIGHT_BYTES + boxes * BOX_BYTES);
                // What is copied behind an expert's last row is multiplied with zeros, which the rows end with.
                if constexpr (WEIGHTS_TURNED)
                    copy_columns(weight_tile, &weights, barrier, output, line + step * K_TILE, OUTPUTS / 64);
                else copy_tile(weight_tile, &weights, barrier, step * K_TILE, line + output);
                if (!waited) {
                    bool last = step + 1 == steps || count + 1 == STAGES;
                    if (!last) continue;
                    wait_for_previous();
                    let_next_start();
                    waited = true;
                    for (int early = 0; early <= step; ++early) {
                        u32 row_tile = tiles + early * STAGE_BYTES + WEIGHT_BYTES;
                        copy_rows(row_tile, &tokens, full + 8 * early, early * K_TILE, row, boxes);
                    }
                } else {
                    copy_rows(weight_tile + WEIGHT_BYTES, &tokens, barrier, step * K_TILE, row, boxes);
                }
            }
        }
        if (!waited) let_next_start();
    } else {
        if constexpr (IN_TURN) take_registers();
        wait_for_previous();
        let_next_start();
        Target target = {out, before, stride, epilogue, activated, outputs, row_limit};
        int count = 0, turn = 0;
        for (int tile = blockIdx.x; walk.find(tile); tile += gridDim.x, ++turn) {
            if (!has_turn(turn, group, steps, count)) continue;
            int row, output;
            walk.place(tile, row, output);
            float d[BLOCKS][ROWS / 2];
            multiply_boxes<BOXES>(walk.boxes(row), d, tiles, full, empty, group, turn, steps, K_TILE, count);
#if IN_TURN
            store_in_pieces(d, tiles + STAGES * STAGE_BYTES + group * PIECE_BYTES, target, row, walk.end, output);
#else
            store(d, target, row, walk.end, output + group * BLOCKS * 64);
#endif
        }
    }
}

#endif
