// What Hopper's products (`hopper.cu`) and gradients (`hopper_gradient.cu`) share: how tiles come into shared memory, and how
// warpgroups multiply them.
//
// One warp asks the copy engine for tiles of [OUTPUTS, 64] and [ROWS, 64] values, STAGES of them ahead; CONSUMERS warpgroups
// multiply. They share tiles, or they take turns at whole ones (IN_TURN): the copies come in the order of the tiles, so
// that the tensor cores are one warpgroup's while the results of another are written. The tensor cores also read operands
// that lie across the sum (WEIGHTS_TURNED, ROWS_TURNED): a tile is then [64, outputs] or [64, rows] in memory, in boxes of
// 64 columns.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int K_TILE = 64;
// Warpgroups that share a tile.
constexpr int SHARERS = IN_TURN ? 1 : CONSUMERS;
constexpr int OUTPUTS = 64 * BLOCKS * SHARERS;
constexpr int WEIGHT_BYTES = OUTPUTS * K_TILE * 2;
// Rows are copied in boxes of so many, of which only those are asked for that hold any.
constexpr int BOX = ROWS % 64 == 0 ? 64 : ROWS;
constexpr int BOXES = ROWS / BOX;
constexpr int BOX_BYTES = BOX * K_TILE * 2;
// 64 columns of a turned tile.
constexpr int TURNED_BOX = 64 * K_TILE * 2;
constexpr int STAGE_BYTES = WEIGHT_BYTES + BOXES * BOX_BYTES;
constexpr int THREADS = 128 * (CONSUMERS + 1);

struct alignas(64) Map {
    char opaque[128];
};

__device__ __forceinline__ void init_barrier(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

// Behind those of the stages, a barrier for each of the two warpgroups that take turns.
constexpr int BARRIERS = 2 * STAGES + (IN_TURN ? 2 : 0);

// Barriers of all stages: one copy fills each, and every warpgroup that multiplies it empties it.
__device__ __forceinline__ void init_stages(u32 full, u32 empty) {
    if (threadIdx.x == 0) {
        if constexpr (IN_TURN) {
            init_barrier(full + 8 * 2 * STAGES, 1);
            init_barrier(full + 8 * 2 * STAGES + 8, 1);
        }
        for (int stage = 0; stage < STAGES; ++stage) {
            init_barrier(full + 8 * stage, 1);
            init_barrier(empty + 8 * stage, SHARERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
}

__device__ __forceinline__ void expect_bytes(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void await(u32 barrier, int parity) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void copy_tile(u32 shared, const Map* map, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared),
        "l"(map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

__device__ __forceinline__ void copy_rows(u32 shared, const Map* map, u32 barrier, int column, int row, int boxes) {
    for (int box = 0; box < boxes; ++box)
        copy_tile(shared + box * BOX_BYTES, map, barrier, column, row + box * BOX);
}

// The columns of a turned tile: a box for every 64 of them.
__device__ __forceinline__ void copy_columns(u32 shared, const Map* map, u32 barrier, int column, int row, int boxes) {
    for (int box = 0; box < boxes; ++box)
        copy_tile(shared + box * TURNED_BOX, map, barrier, column + box * 64, row);
}

// A tile of rows of 128 bytes, swizzled over 1024: the form in which the copy engine leaves it.
template <bool TURNED> __device__ __forceinline__ u64 tile_descriptor(u32 address) {
    // The distance between boxes, which matters in turned ones alone.
    constexpr u64 apart = TURNED ? TURNED_BOX >> 4 : 1;
    return u64((address & 0x3ffff) >> 4) | (apart << 16) | (u64(64) << 32) | (u64(1) << 62);
}

// From 16 values along K to the next, in the units of a descriptor: 32 bytes of every row, or 16 rows.
constexpr int WEIGHT_PART = WEIGHTS_TURNED ? 16 * 128 / 16 : 2;
constexpr int ROW_PART = ROWS_TURNED ? 16 * 128 / 16 : 2;

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Tiles of rows that share outputs in the second-level cache before the next ones are begun: some 2048 rows.
constexpr int BAND = ROWS >= 128 ? 2048 / ROWS : 16;

// Places tile `local` of `row_tiles` by `output_tiles`: in bands of `band` row tiles; in a band, outputs; for outputs, row
// tiles. What blocks read at a time is then about as wide as high, and much of it the same.
__device__ __forceinline__ void place_tile(
    int local, int row_tiles, int output_tiles, int band, int& row, int& output) {
    int first = local / (band * output_tiles) * band, width = min(band, row_tiles - first);
    local -= first * output_tiles;
    row = (first + local % width) * ROWS;
    output = local / width * OUTPUTS;
}

// The warp that copies needs few registers, those that multiply many: of 168 for each of three warpgroups.
static_assert(!IN_TURN || CONSUMERS == 2, "registers are shared among three warpgroups");
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }

// Whether the block's tile number `turn`, of so many steps, is this warpgroup's; else its steps are passed over.
__device__ __forceinline__ bool has_turn(int turn, int group, int steps, int& count) {
    if (!IN_TURN || turn % 2 == group) return true;
    count += steps;
    return false;
}

// Waits until the other warpgroup has seen all stages before those of tile `turn` filled: a barrier tells but one phase
// from the next.
__device__ __forceinline__ void await_turn(u32 empty, int turn) {
    if (IN_TURN && turn > 0) await(empty + 8 * (STAGES + turn % 2), (turn - 1) / 2 & 1);
}

__device__ __forceinline__ void pass_turn(u32 empty, int turn) {
    if (IN_TURN && threadIdx.x % 128 == 0) arrive(empty + 8 * (STAGES + (turn + 1) % 2));
}

// Clears rows `left` to 64 of turned tiles: of a warpgroup's outputs, and of N rows.
template <int N> __device__ __forceinline__ void clear_behind(u32 base, int group, int left) {
    int vectors = (64 - left) * 8;
    auto clear = [&](u32 tile, int thread, int threads) {
        for (int i = thread; i < vectors; i += threads)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile + left * 128 + i * 16), "r"(0) : "memory");
    };
    for (int block = 0; block < BLOCKS; ++block)
        clear(base + (group * BLOCKS + block) * TURNED_BOX, threadIdx.x % 128, 128);
    for (int box = 0; box < N / 64; ++box)
        clear(base + WEIGHT_BYTES + box * TURNED_BOX, threadIdx.x, 128 * CONSUMERS);
    // The tensor cores see it after this, and what the other warpgroups have cleared after the barrier.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"n"(128 * CONSUMERS) : "memory");
}

// Multiplies the tiles of all steps along K for a warpgroup's outputs and the first N rows. Where both operands are
// turned, the last step has `left` of 64: what was copied behind those belongs to other experts.
template <int N>
__device__ __forceinline__ void multiply(
    float (&d)[BLOCKS][ROWS / 2], u32 tiles, u32 full, u32 empty, int group, int turn, int steps, int left,
    int& count) {
    await_turn(empty, turn);
    for (int step = 0; step < steps; ++step, ++count) {
        int stage = count % STAGES;
        await(full + 8 * stage, count / STAGES & 1);
        u32 base = tiles + stage * STAGE_BYTES;
        if constexpr (WEIGHTS_TURNED && ROWS_TURNED) {
            if (step + 1 == steps && left < K_TILE) clear_behind<N>(base, group, left);
        }
        u64 b = tile_descriptor<ROWS_TURNED>(base + WEIGHT_BYTES);
        begin_products();
#pragma unroll
        for (int part = 0; part < K_TILE / 16; ++part) {
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                u64 a = tile_descriptor<WEIGHTS_TURNED>(base + (group % SHARERS * BLOCKS + block) * 64 * K_TILE * 2);
                float(&target)[N / 2] = *reinterpret_cast<float(*)[N / 2]>(&d[block][0]);
                wgmma<N>(target, a + WEIGHT_PART * part, b + ROW_PART * part, step > 0 || part > 0);
            }
        }
        commit_products();
        if (step + 1 == steps) pass_turn(empty, turn);
        await_products<1>();
        // The products of the step before are done, so that its stage is free.
        if (step > 0 && threadIdx.x % 128 == 0) arrive(empty + 8 * ((count - 1) % STAGES));
    }
    await_products<0>();
    if (threadIdx.x % 128 == 0) arrive(empty + 8 * ((count - 1) % STAGES));
}

// The same for as many boxes of rows as there are: the last rows of an expert seldom fill a tile.
template <int MOST>
__device__ __forceinline__ void multiply_boxes(
    int boxes, float (&d)[BLOCKS][ROWS / 2], u32 tiles, u32 full, u32 empty, int group, int turn, int steps,
    int left, int& count) {
    if constexpr (PARTIAL && MOST > 1) {
        if (boxes < MOST)
            return multiply_boxes<MOST - 1>(boxes, d, tiles, full, empty, group, turn, steps, left, count);
    }
    multiply<MOST * BOX>(d, tiles, full, empty, group, turn, steps, left, count);
}

#endif
