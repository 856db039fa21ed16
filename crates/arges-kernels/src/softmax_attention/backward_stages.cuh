// How matrices and statistics come to a block on Hopper. One warp draws tasks and asks for matrices; one brings statistics
// of query rows: for the exponent of a weight, -lse in units of log 2, and delta.
//
// Nobody waits in a circle. Uses of stages are numbered through all tasks, and all go through the same numbers: whoever fills
// a stage waits until its last use is over, whoever uses it until both fillers are done, so that the one who is furthest
// behind need never wait. The same holds for tasks, and for a warpgroup's own pair. A barrier tells by parity alone which
// phase it is in, which suffices: it does not get two phases ahead of anybody who waits for one, as the next needs what he
// does behind it.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int STAGES = 4, TASKS = 4, CONSUMER_WARPS = 8;
constexpr int STRIPS = HEAD_DIM / 64, PAIR = 2 * MATRIX;
// Two tiles, as they are copied.
constexpr int TILES_BYTES = 2 * STRIPS * TILE_ROWS * 128;

struct __align__(64) TensorMap {
    u64 words[16];
};

struct Shared {
    float of_stage[STAGES][2][64]; // statistics
    float of_own[2][2][64];        // those of each warpgroup's rows
    Task tasks[TASKS];
    u64 full[STAGES], empty[STAGES], own_full, own_empty, drawn[TASKS], patched;
};

// The shared memory of a block, and waiting for parts of it. Uses of stages, and tasks, are numbered from 0 on.
struct Block {
    Shared& shared;
    u32 matrices; // own pairs, then stages

    __device__ __forceinline__ u32 own(int group) const { return matrices + group * PAIR; }
    __device__ __forceinline__ u32 stage(u32 use) const { return matrices + (2 + use % STAGES) * PAIR; }
    __device__ __forceinline__ u32 full(u32 use) const { return shared_address(shared.full + use % STAGES); }
    __device__ __forceinline__ u32 empty(u32 use) const { return shared_address(shared.empty + use % STAGES); }
    __device__ __forceinline__ u32 own_full() const { return shared_address(&shared.own_full); }
    __device__ __forceinline__ u32 own_empty() const { return shared_address(&shared.own_empty); }

    __device__ __forceinline__ void init() const {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full(i), 2);
            barrier_init(empty(i), CONSUMER_WARPS);
        }
        barrier_init(own_full(), 2);
        barrier_init(own_empty(), CONSUMER_WARPS);
        for (u64& drawn : shared.drawn) barrier_init(shared_address(&drawn), 1);
        barrier_init(shared_address(&shared.patched), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }

    __device__ __forceinline__ void await_full(u32 use) const { barrier_wait(full(use), use / STAGES % 2); }
    __device__ __forceinline__ void await_empty(u32 use) const { barrier_wait(empty(use), use / STAGES % 2 ^ 1); }
    __device__ __forceinline__ void await_own(u32 turn) const { barrier_wait(own_full(), turn % 2); }
    __device__ __forceinline__ void await_own_empty(u32 turn) const { barrier_wait(own_empty(), turn % 2 ^ 1); }

    // The task stays there until the warpgroups have begun on the next but one.
    __device__ __forceinline__ const Task& task(u32 turn) const {
        barrier_wait(shared_address(shared.drawn + turn % TASKS), turn / TASKS % 2);
        return shared.tasks[turn % TASKS];
    }

    __device__ __forceinline__ void pass_task(u32 turn, const Task& task) const {
        if (threadIdx.x % 32 != 0) return;
        shared.tasks[turn % TASKS] = task;
        barrier_arrive(shared_address(shared.drawn + turn % TASKS));
    }
};

// For one of a warp, after what all its lanes did.
__device__ __forceinline__ void arrive_once(u32 barrier) {
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// Copies the heads that share a key-value head, of TOKENS tokens of the batch from `token` on.
__device__ __forceinline__ void copy_tile(u32 to, const TensorMap& map, int kv_head, int token, u32 barrier) {
#pragma unroll
    for (int strip = 0; strip < STRIPS; strip++) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
                "r"(to + strip * PANEL), "l"(&map), "r"(strip * 64), "r"(kv_head * GROUP), "r"(token), "r"(barrier)
            : "memory");
    }
}

// Clears rows `first` to 63 of a pair. All lanes of a warp call it.
__device__ __forceinline__ void clear_rows(u32 pair, int first) {
    for (int i = threadIdx.x % 32 + first * 8; i < 64 * 8; i += 32) {
#pragma unroll
        for (int panel = 0; panel < 2 * STRIPS; panel++)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(pair + panel * PANEL + i * 16), "r"(0) : "memory");
    }
    publish();
    __syncwarp();
}

// The work of the warp that draws tasks and asks for matrices.
__device__ __forceinline__ void fill_matrices(const Block& block, const Gradients& g, const Batch& batch,
                                              const TensorMap& queries, const TensorMap& dout, int* drawn) {
    const int lane = threadIdx.x % 32;
    const auto copy_page = [&](u32 to, int page, int kv_head, u32 barrier) {
        copy_bulk(to, g.pages + head_page(page, g.kv_heads, kv_head), PAIR, barrier);
    };
    const auto copy_tiles = [&](u32 to, const Task& task, int tile, u32 barrier) {
        const int token = task.span.first + tile * TOKENS;
        copy_tile(to, queries, task.kv_head, token, barrier);
        copy_tile(to + MATRIX, dout, task.kv_head, token, barrier);
    };
    // What earlier kernels stored is read by the copy engine.
    asm volatile("fence.proxy.async;" ::: "memory");
    const Tasks tasks(batch, g.kv_heads);
    u32 use = 0, patches = 0;
    int number = blockIdx.x;
#pragma unroll 1
    for (u32 turn = 0;; turn++) {
        block.pass_task(turn, tasks.at(number));
        const Task task = block.task(turn);
        if (task.kind == NOTHING) {
            // Each block that had a task draws one number in vain; whose is the last leaves the counter at 0.
            if (lane == 0 && task.beyond == gridDim.x - 1) *drawn = 0;
            return;
        }
        const bool of_keys = task.kind == OF_KEYS;
        const int last_page = (task.span.rows - 1) / PAGE;
        block.await_own_empty(turn);
        if (lane == 0) {
            const int first = task.place * 2, count = of_keys ? min(2, last_page + 1 - first) : 2;
            barrier_expect(block.own_full(), count * (of_keys ? PAIR : TILES_BYTES));
#pragma unroll 1
            for (int i = 0; i < count; i++) {
                if (of_keys) copy_page(block.own(i), page_at(batch, task.span, first + i), task.kv_head, block.own_full());
                else copy_tiles(block.own(i), task, first + i, block.own_full());
            }
        }
        const Stream stream(task);
        int pages = 0;
#pragma unroll 1
        for (int n = 0; n < stream.count; n++, use++) {
            if (!of_keys && n % 32 == 0) pages = page_at(batch, task.span, min(n + lane, last_page));
            const int page = __shfl_sync(~0u, pages, n % 32), tile = stream.first - n;
            const int present = of_keys ? (task.span.rows - tile * TOKENS) * GROUP : task.span.rows - n * PAGE;
            const bool partial = present < (of_keys ? TILE_ROWS : PAGE);
            const u32 barrier = partial ? shared_address(&block.shared.patched) : block.full(use);
            block.await_empty(use);
            if (lane == 0) {
                barrier_expect(barrier, of_keys ? TILES_BYTES : PAIR);
                if (of_keys) copy_tiles(block.stage(use), task, tile, barrier);
                else copy_page(block.stage(use), page, task.kv_head, barrier);
            }
            // Behind a span's last row comes anything, and a weight of 0 would not make 0 of all.
            if (partial) {
                barrier_wait(barrier, patches++ % 2);
                clear_rows(block.stage(use), present);
                arrive_once(block.full(use));
            }
            __syncwarp();
        }
        if (lane == 0) number = gridDim.x + atomicAdd(drawn, 1);
        number = __shfl_sync(~0u, number, 0);
    }
}

// The work of the warp that brings statistics, one stage ahead in registers.
__device__ __forceinline__ void fill_statistics(const Block& block, const Gradients& g) {
    const int lane = threadIdx.x % 32;
    u32 use = 0;
#pragma unroll 1
    for (u32 turn = 0;; turn++) {
        const Task task = block.task(turn);
        if (task.kind == NOTHING) return;
        const auto load = [&](float (&x)[2][2], int tile) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int r = i * 32 + lane, flat = tile * TILE_ROWS + r;
                const bool present = r < TILE_ROWS && flat < task.span.rows * GROUP;
                const QueryRow at = query_row(task.span, task.kv_head, present ? flat : 0);
                const i64 head = at.row * g.kv_heads * GROUP + at.head;
                x[i][0] = present ? -LOG2_E * g.lse[head] : MINUS_INFINITY;
                x[i][1] = present ? g.delta[head] : 0.0f;
            }
        };
        const auto store = [&](float (&to)[2][64], const float (&x)[2][2]) {
#pragma unroll
            for (int i = 0; i < 4; i++) to[i / 2][i % 2 * 32 + lane] = x[i % 2][i / 2];
            __syncwarp();
        };
        float x[2][2];
        block.await_own_empty(turn);
        if (task.kind == OF_QUERIES) {
#pragma unroll 1
            for (int group = 0; group < 2; group++) {
                load(x, task.place * 2 + group);
                store(block.shared.of_own[group], x);
            }
        }
        arrive_once(block.own_full());
        const Stream stream(task);
#pragma unroll 1
        for (int n = 0; n < stream.count; n++, use++) {
            if (task.kind == OF_KEYS) load(x, stream.first - n);
            block.await_empty(use);
            if (task.kind == OF_KEYS) store(block.shared.of_stage[use % STAGES], x);
            arrive_once(block.full(use));
        }
    }
}

#endif
