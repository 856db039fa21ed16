// Gradients in bf16 with Hopper's warpgroup products. Compiled for HEAD_DIM 64 or 128, GROUP <= 64, a ROTARY_DIM that is a
// multiple of 16, and WGMMA = 1, besides what pages.cuh needs.
//
// A warpgroup multiplies a pair of matrices of its own, of 64 rows each, with pairs that pass by in shared memory: keys and
// values with tiles of queries and the gradients of their outputs, or the other way round. One warp asks for copies, one
// brings statistics of the query rows: for the exponent of a weight, -lse in units of log 2, and delta. Neither warpgroup
// waits for the other: while one makes exponentials, the tensor cores have the other's products.
//
// Nobody waits in a circle. What passes by is numbered through all tasks, and everybody goes through the same numbers: to
// fill a stage waits for the use before the last to be over, to use it for both fillers. The same holds for tasks, and for
// a warpgroup's own pair. Nobody is more than one phase of a barrier ahead of another who waits there, as each phase needs
// all who wait for it, or for the one before.

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
    u32 use = 0, patches = 0;
    int number = blockIdx.x;
#pragma unroll 1
    for (u32 turn = 0;; turn++) {
        block.pass_task(turn, find_task(batch, g.kv_heads, number));
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
            // Behind a span's last row come another's, or rubbish: neither need give 0 times 0.
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

// The same of a warp's lanes, as the compiler may then know: it computes descriptions of matrices once for the warp.
__device__ __forceinline__ u32 uniform(u32 x) { return __shfl_sync(~0u, x, 0); }

// Keeps the compiler from moving uses of a product's registers across this place.
template <int N> __device__ __forceinline__ void settle(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

// Never sleeps, as no weight is negative; but the assembler does not move a wait for products in front of it, and so not
// in front of the exponentials that are to run beside them.
__device__ __forceinline__ void follow(const float (&weight)[32]) {
    u32 any = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) any |= __float_as_uint(weight[i]);
    asm volatile("{.reg .pred p; setp.lt.s32 p, %0, 0; @p nanosleep.u32 1;}" ::"r"(any) : "memory");
}

// A warpgroup's 64 rows in shared memory as left operands.
__device__ __forceinline__ void load_rows(u32 (&left)[STEPS][4], u32 rows) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < STEPS; step++) load_tiles(left[step], piece_address(rows, row, step * 2 + lane / 16));
}

// A warpgroup's part of a task of keys, from use `use` of stages on.
__device__ __forceinline__ void key_gradients(const Block& block, const Gradients& g, float scale, const Task& task,
                                              int group, u32& use) {
    const int lane = threadIdx.x % 32, own_row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const u32 keys = uniform(block.own(group)), values = keys + MATRIX, end = use + Stream(task).count;
    const int first_key = task.place * KEYS + group * PAGE;
    // Queries before the warpgroup's keys see none of them.
    const int first = first_key < task.span.rows ? Stream(task).first : -1, last = first_key / TOKENS;
    float dkeys[HEAD_DIM / 2], dvalues[HEAD_DIM / 2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) dkeys[i] = dvalues[i] = 0.0f;
#pragma unroll 1
    for (int tile = first; tile >= last; tile--, use++) {
        const u32 queries = uniform(block.stage(use)), dout = queries + MATRIX;
        const auto& statistics = block.shared.of_stage[use % STAGES];
        float weight[32], dscore[32];
        block.await_full(use);
        begin_products();
        start_scores(weight, keys, queries);
        await_products<1>();
        settle(dkeys);
        settle(dvalues);
        if (tile != first) arrive_once(block.empty(use - 1));
        begin_products();
        start_scores(dscore, values, dout);
        await_products<1>();
        settle(weight);
        if (tile * TOKENS < first_key + PAGE - 1) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int key = first_key + own_row + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (key > tile * TOKENS + column / GROUP) weight[i] = MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const float2 exponent = *reinterpret_cast<const float2*>(&statistics[0][t * 8 + lane % 4 * 2]);
#pragma unroll
            for (int i = 4 * t; i < 4 * t + 4; i++)
                weight[i] = power_of_two(fmaf(weight[i], scale * LOG2_E, i % 2 ? exponent.y : exponent.x));
        }
        u32 left[4][4];
        pack(left, weight);
        follow(weight);
        await_products<0>();
        settle(dscore);
        begin_products();
        start_sums(dvalues, left, dout);
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const float2 dot = *reinterpret_cast<const float2*>(&statistics[1][t * 8 + lane % 4 * 2]);
#pragma unroll
            for (int i = 4 * t; i < 4 * t + 4; i++) dscore[i] = weight[i] * (dscore[i] - (i % 2 ? dot.y : dot.x));
        }
        u32 dleft[4][4];
        pack(dleft, dscore);
        begin_products();
        start_sums(dkeys, dleft, queries);
    }
    await_products<0>();
    settle(dkeys);
    settle(dvalues);
    if (first >= last) arrive_once(block.empty(use - 1));
    for (; use < end; use++) {
        block.await_full(use);
        arrive_once(block.empty(use));
    }
    arrive_once(block.own_empty());
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int token = first_key + own_row + 8 * h;
        if (token >= task.span.rows) continue;
        const i64 row = i64(task.span.first) + token;
        bf16* to = g.dprojected + row * g.stride + (g.kv_heads * GROUP + task.kv_head) * HEAD_DIM;
        store_row<true>(to, dkeys, h, scale, g.angles + row * ROTARY_DIM);
        store_row<false>(to + g.kv_heads * HEAD_DIM, dvalues, h, 1.0f, nullptr);
    }
}

// Whether the left operands of a task of queries stay in registers, from where the tensor cores have them sooner; the
// warpgroup's pair is then free for the next task from the start. With fewer channels, NVRTC 13.0 takes registers that
// hold them for the weights of a page.
constexpr bool KEEPS_ROWS = HEAD_DIM == 128;

// The same of a task of queries.
__device__ __forceinline__ void query_gradients(const Block& block, const Gradients& g, float scale, const Task& task,
                                                int group, u32& use) {
    const int lane = threadIdx.x % 32, own_row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const u32 end = use + Stream(task).count;
    const int first_token = (task.place * 2 + group) * TOKENS;
    const int pages = min(Stream(task).count, (first_token + TOKENS - 1) / PAGE + 1);
    const u32 own = uniform(block.own(group));
    u32 queries[STEPS][4], dout[STEPS][4];
    if constexpr (KEEPS_ROWS) {
        load_rows(queries, own);
        load_rows(dout, own + MATRIX);
    }
    float exponent[2], dot[2], sums[HEAD_DIM / 2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        exponent[h] = block.shared.of_own[group][0][own_row + 8 * h];
        dot[h] = block.shared.of_own[group][1][own_row + 8 * h];
    }
    __syncwarp();
    if (KEEPS_ROWS) arrive_once(block.own_empty());
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.0f;
#pragma unroll 1
    for (int page = 0; page < pages; page++, use++) {
        const u32 keys = uniform(block.stage(use)), values = keys + MATRIX;
        float weight[32], dscore[32];
        block.await_full(use);
        begin_products();
        if constexpr (KEEPS_ROWS) {
            start_scores(weight, queries, keys);
            start_scores(dscore, dout, values);
        } else {
            start_scores(weight, own, keys);
            start_scores(dscore, own + MATRIX, values);
        }
        await_products<2>();
        settle(sums);
        if (page > 0) arrive_once(block.empty(use - 1));
        await_products<1>();
        settle(weight);
        if ((page + 1) * PAGE - 1 > first_token) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int key = page * PAGE + i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (key > first_token + (own_row + i / 2 % 2 * 8) / GROUP) weight[i] = MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int i = 0; i < 32; i++) weight[i] = power_of_two(fmaf(weight[i], scale * LOG2_E, exponent[i / 2 % 2]));
        follow(weight);
        await_products<0>();
        settle(dscore);
#pragma unroll
        for (int i = 0; i < 32; i++) dscore[i] = weight[i] * (dscore[i] - dot[i / 2 % 2]);
        u32 left[4][4];
        pack(left, dscore);
        begin_products();
        start_sums(sums, left, keys);
    }
    await_products<0>();
    settle(sums);
    arrive_once(block.empty(use - 1));
    for (; use < end; use++) {
        block.await_full(use);
        arrive_once(block.empty(use));
    }
    if (!KEEPS_ROWS) arrive_once(block.own_empty());
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = own_row + 8 * h, token = first_token + r / GROUP;
        if (r >= TILE_ROWS || token >= task.span.rows) continue;
        const i64 row = i64(task.span.first) + token;
        bf16* to = g.dprojected + row * g.stride + (task.kv_head * GROUP + r % GROUP) * HEAD_DIM;
        store_row<true>(to, sums, h, scale, g.angles + row * ROTARY_DIM);
    }
}

// The maps are of the heads of `projected` and `dout`, copied in tiles. One block a multiprocessor; `drawn` is 0 before and
// after.
extern "C" __global__ void __launch_bounds__(384, 1)
gradients(ARGUMENTS, const __grid_constant__ TensorMap queries_map, const __grid_constant__ TensorMap dout_map, int* drawn) {
    const Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    const Gradients g = {kv_heads, projected, stride, pages, dout, lse, delta, angles, dprojected};
    extern __shared__ char matrices[];
    __shared__ Shared shared;
    const Block block = {shared, (shared_address(matrices) + 1023) & ~1023u};
    const int warp = threadIdx.x / 32, group = warp / 4 - 1;
    if (threadIdx.x == 0) block.init();
    // Rows that no tile has: nothing comes there before the last task of keys.
    if (TILE_ROWS < 64 && warp < STAGES) clear_rows(block.stage(warp), TILE_ROWS);
    __syncthreads();
    wait_for_previous();
    let_next_start();
    if (warp < 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (warp == 0) fill_matrices(block, g, batch, queries_map, dout_map, drawn);
        else if (warp == 1) fill_statistics(block, g);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        u32 use = 0, turn = 0;
        const auto take = [&](Kind kind, auto body) {
#pragma unroll 1
            for (;; turn++) {
                const Task& task = block.task(turn);
                if (task.kind != kind) break;
                block.await_own(turn);
                body(task);
            }
        };
        // One kind after the other, as they come: together they would need too many registers.
        take(OF_KEYS, [&](const Task& task) { key_gradients(block, g, scale, task, group, use); });
        take(OF_QUERIES, [&](const Task& task) { query_gradients(block, g, scale, task, group, use); });
    }
}

#endif
