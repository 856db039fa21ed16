// Gradients of lightning attention, in bf16 on tensor cores. With the decays w_ij of query i and key j, 0 for j > i,
//
//   dq_i = sum_j w_ij (do_i·v_j) k_j     dk_j = sum_i w_ij (v_j·do_i) q_i     dv_j = sum_i w_ij (k_j·q_i) do_i
//
// Each is lightning attention itself (chunks.cuh): dq of the output's gradients over values and keys; dk and dv, against
// time, of values over the output's gradients and queries, and of keys over queries and the output's gradients.
//
// A walk is one gradient of some channels of a head of a span. Walks are as many as they are, and seldom a multiple of the
// blocks that run at once. So all chunks of one gradient's walks, one walk after the other, are cut into as many equal
// shares as there are blocks for it. Where a cut falls into a walk, the block of the lower share hands the walk's state, in
// f32 as it is, to that of the next share: a walk has the same bits however it is cut. All gradients are cut alike, so that
// those of keys and values read the same rows at the same time.
//
// A block begins with its highest piece, from which alone others may take a state, and ends with its lowest, for which
// alone it may wait: so states are there long before they are needed, as long as walks are no longer than a share. It
// waits for none but the next lower share's block, which took its number from the counter before and so is running or
// done: those waiting for one another end at one that does not wait, as the lowest share begins with a walk.

enum Gradient { QUERY, KEY, VALUE };

// Gradients, of channels that blocks of their own take.
constexpr int KINDS = 3 * (HEAD_DIM / 64 / ATTENDING);

// The span that a chunk is of, by its number among those of all spans in their order.
struct Place {
    Span span;
    int chunks;
    // Chunks of the spans before; of all if there is no such chunk.
    i64 before;
};

// All lanes of a warp find the same.
__device__ __forceinline__ Place place_of(i64 chunk, const int4* spans, int span_count, int rows) {
    const int lane = threadIdx.x % 32;
    Place place = {};
    for (int first = 0; first < span_count; first += 32) {
        const Span span = first + lane < span_count ? whole_span_at(spans, rows, first + lane) : Span{};
        const int chunks = (span.rows + CHUNK - 1) / CHUNK;
        int through = chunks;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int x = __shfl_up_sync(~0u, through, step);
            if (lane >= step) through += x;
        }
        const u32 beyond = __ballot_sync(~0u, place.before + through > chunk);
        const int found = beyond == 0 ? 31 : __ffs(beyond) - 1;
        through = __shfl_sync(~0u, through, found);
        if (beyond == 0) {
            place.before += through;
            continue;
        }
        place.chunks = __shfl_sync(~0u, chunks, found);
        place.span = {__shfl_sync(~0u, span.first, found), __shfl_sync(~0u, span.rows, found), 0, 0};
        place.before += through - place.chunks;
        break;
    }
    return place;
}

// The warpgroup that fetches needs few registers, those that attend many: of 168 for each of three.
#if WGMMA && HEAD_DIM > 64
static_assert(ATTENDING == 2, "registers are shared among three warpgroups");
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 120;"); }
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 192;"); }
#else
__device__ __forceinline__ void give_registers() {}
__device__ __forceinline__ void take_registers() {}
#endif

// Rows of `projected`, `before_silu` and `dprojected` are `stride` apart and begin with [heads, 3, HEAD_DIM]. Where
// `before_silu` is not null, the gradients are those by it. `flags` has the counter of blocks and then the flags by which
// they hand over `states`; all are 0 before and after. Grid: any multiple of `KINDS` blocks.
extern "C" __global__ void __launch_bounds__(THREADS, 1) lightning_backward(
    const bf16* projected, const bf16* before_silu, i64 stride, const bf16* dout, const int4* spans, int span_count,
    int rows, int heads, const float* powers, bf16* dprojected, float* states, u32* flags
#if WGMMA
    ,
    const __grid_constant__ TensorMap projected_map, const __grid_constant__ TensorMap before_map,
    const __grid_constant__ TensorMap dout_map
#endif
) {
    extern __shared__ unsigned char dynamic_shared[];
    const u32 shared = (shared_address(dynamic_shared) + 1023) & ~1023u;
    unsigned char* aligned = dynamic_shared + (shared - shared_address(dynamic_shared));
    float* table = reinterpret_cast<float*>(aligned + TABLE);
    u32* number_address = reinterpret_cast<u32*>(table + POWERS + MARGIN);
    const void *projected_address = nullptr, *before_address = nullptr, *dout_address = nullptr;
#if WGMMA
    projected_address = &projected_map;
    before_address = &before_map;
    dout_address = &dout_map;
#endif
    wait_for_previous();
    if (threadIdx.x == 0) *number_address = atomicInc(flags, gridDim.x - 1);
    begin_block(shared);
    let_next_start();

    const int number = *number_address, kind = number % KINDS, channel = kind % (KINDS / 3) * 64 * ATTENDING;
    const Gradient gradient = Gradient(kind / (KINDS / 3));
    const i64 all = place_of(0x7fffffff, spans, span_count, rows).before * heads;
    const i64 blocks = min(i64(gridDim.x / KINDS), all), block = number / KINDS;
    if (block >= blocks) return;
    const i64 share_begin = all * block / blocks, share_end = all * (block + 1) / blocks;

    // Calls the body for each piece, with its head, its span and which chunks of it.
    const auto each_piece = [&](auto body) {
        int before = 0;
        for (i64 begin, end = share_end; end > share_begin; end = begin) {
            const Place place = place_of((end - 1) / heads, spans, span_count, rows);
            const i64 first = place.before * heads;
            const int head = int((end - 1 - first) / place.chunks);
            const i64 walk_begin = first + i64(head) * place.chunks;
            begin = max(share_begin, walk_begin);
            // Nobody reads the decays of the piece before any more.
            meet(WHOLE, THREADS);
            for (int n = int(threadIdx.x) - MARGIN; n <= CHUNK + MARGIN; n += THREADS) {
                const float* decay = powers + head * POWERS + (gradient == QUERY ? n : CHUNK - n);
                table[n] = n >= 0 && n <= CHUNK ? *decay : 0.0f;
            }
            meet(WHOLE, THREADS);
            const int from = int(begin - walk_begin), count = int(end - begin);
            const Handover handover = {states, flags + 1, from > 0 ? number - KINDS : -1,
                                       from + count < place.chunks ? number : -1};
            if (gradient == QUERY) body(head, place.span, Walk<false>{from, count, before}, handover);
            else body(head, place.span, Walk<true>{place.chunks - 1 - from, count, before}, handover);
            before += count;
        }
    };

    if (threadIdx.x < 128) {
        give_registers();
        each_piece([&](int head, Span span, auto walk, const Handover&) {
            const int first = head * 3 * HEAD_DIM;
            const auto input = [&](Gradient part, int channel) {
                const int at = first + part * HEAD_DIM + channel;
                return Rows{projected_address, at, projected + at, stride};
            };
            const auto output_gradients = [&](int channel) {
                const int at = head * HEAD_DIM + channel;
                return Rows{dout_address, at, dout + at, i64(heads) * HEAD_DIM};
            };
            const int own = first + gradient * HEAD_DIM + channel;
            const bf16* before = before_silu == nullptr ? nullptr : before_silu + own;
            const Target target = {dprojected + own, {before_address, own, before, stride}};
            const bool key = gradient == KEY;
            const Operands operands =
                gradient == QUERY ? Operands{output_gradients(0), input(VALUE, 0), input(KEY, channel)}
                                  : Operands{key ? input(VALUE, 0) : input(KEY, 0),
                                             key ? output_gradients(0) : input(QUERY, 0),
                                             key ? input(QUERY, channel) : output_gradients(channel)};
            fetch_and_score<decltype(walk)::AGAINST_TIME, true>(shared, operands, span, walk, nullptr, nullptr, table,
                                                                target);
        });
    } else {
        take_registers();
        each_piece([&](int head, Span span, auto walk, const Handover& handover) {
            attend<decltype(walk)::AGAINST_TIME, false>(shared, span, walk, 0, nullptr, handover, table,
                                                        powers[head * POWERS + CHUNK], before_silu != nullptr, nullptr, 0);
        });
    }
}
