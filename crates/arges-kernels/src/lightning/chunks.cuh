// The recurrence over chunks on tensor cores, in bf16, for heads of 64 or 128 channels: outputs of queries over keys and
// values, decaying with the distance from key to query, of which the gradients are cases too. A block takes 64 value
// channels of one head of one span, or, if `WIDE`, 128, chunk by chunk, in either direction of time. With WGMMA it uses
// Hopper's warpgroup products and its copy engine, else what every device since Ampere has; the order of things is the same.
//
// One warpgroup for each 64 channels, the second of the block and if `WIDE` the third, attends. It computes everything
// transposed: the state S^T [value channel, key channel] is an accumulator whose registers are, as they lie, also the left
// operand of O^T = S^T Q^T. So the state stays in f32 in registers from the first chunk to the last. It enters that product
// as the sum of two bf16 values, of 16 bits together, and so do the decayed values of the update; the scores and the output
// are rounded to bf16 once. For gradients, which are as good as their own rounding, both enter rounded to one bf16 value.
//
// The first warpgroup fetches chunks ahead of their use and computes their scores one ahead of those that attend. A chunk
// that lies whole in the span comes through the copy engine; one that begins in the tail or ends before its grid point, and
// without WGMMA every one, comes row by row. Of gradients it also stores what the others computed.
//
// With each of the others it has two pairs of barriers, for even and odd chunks. At SCORED it arrives, once the scores of
// chunk n lie there and what lay in the outputs' place of n is taken; the other waits there before it uses the scores or
// writes outputs. At DONE the other arrives, once it is through with the stage, the scores and the values before SiLU of
// chunk n and its outputs lie there; the first waits there before it fetches, scores or stores in their place, that is
// before the scores of n + LEAD. So nobody arrives at a barrier again before the other has met the last arrival, and
// neither can wait for ever: for the scores of n the first needs DONE of n - LEAD only, which needs scores up to that. At
// the end of a walk of gradients it has waited for all chunks, and the next begins as the first did.

// Fetches chunks and computes their scores P = (Q K^T) weighted by the decay between the two tokens. `tail_keys` and
// `tail_values` have the rows of the first chunk that the span does not; null where it begins with a chunk. With
// `STORES` it also stores the outputs, two chunks later.
template <bool REVERSED, bool STORES>
__device__ __forceinline__ void fetch_and_score(
    u32 shared, const Operands& x, Span span, Walk<REVERSED> walk, const bf16* tail_keys, const bf16* tail_values,
    const float* table, const Target& target
) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int count = walk.count;

    const auto fetch_chunk = [&](int n) {
        if (n < count) {
            const Part part = part_of(span, walk.chunk(n));
            const u32 stage = shared + ((walk.before + n) % STAGES) * STAGE;
#if WGMMA
            if (part.whole()) {
                if (threadIdx.x == 0) copy_chunk(stage, x, part.row, arrival(shared, walk.before + n));
                return;
            }
#endif
            fetch_rows<HEAD_DIM>(stage, x.queries, part, nullptr);
            fetch_rows<HEAD_DIM>(stage + KEYS, x.keys, part, n == 0 ? tail_keys : nullptr);
            fetch_rows<64 * ATTENDING>(stage + VALUES, x.values, part, n == 0 ? tail_values : nullptr);
        }
        commit_copies();
    };
#pragma unroll
    for (int n = 0; n < AHEAD; n++) fetch_chunk(n);

    const auto weight = [&](int x) {
        const int i = warp * 16 + lane / 4 + (x % 4 / 2) * 8, j = x / 4 * 8 + lane % 4 * 2 + x % 2;
        return Walk<REVERSED>::weight(table, i, j);
    };
    float weights[32];
#pragma unroll
    for (int x = 0; x < 32; x++) weights[x] = WIDE ? 0.0f : weight(x);

    // What a store needs but the gradients is loaded as soon as the store before is done.
    Store store = {target};
    const auto store_chunk = [&](int n) {
        store.store(part_of(span, walk.chunk(n)));
        if (n + 1 < count) store.load_before(part_of(span, walk.chunk(n + 1)));
    };
    if (STORES) store.load_before(part_of(span, walk.chunk(0)));
    for (int n = 0; n < count; n++) {
        const bool storing = STORES && n >= LEAD;
        // Those that attend are done with the stage to be fetched into, and with these scores' place.
#pragma unroll
        for (int g = 0; g < ATTENDING; g++)
            if (n >= LEAD) meet(DONE + n % 2 + g * EACH, 256);
        fetch_chunk(n + AHEAD);
#if WGMMA
        if (WIDE && STORES && target.before.at != nullptr && threadIdx.x == 0) {
            copy_before(shared, target, walk.before + n, part_of(span, walk.chunk(n)).row);
        }
        if (!part_of(span, walk.chunk(n)).whole()) {
            await_copies<0>();
            publish();
            meet(WITHIN_FIRST, 128);
            if (threadIdx.x == 0) {
                asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(arrival(shared, walk.before + n))
                             : "memory");
            }
        }
        await_chunk(shared, walk.before + n);
#else
        await_copies<AHEAD>();
        meet(WITHIN_FIRST, 128);
        arrive(LOADED + (walk.before + n) % 2, 256);
#endif

        const u32 queries = shared + ((walk.before + n) % STAGES) * STAGE;
        float scores[32];
        begin_products();
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) multiply(scores, channels(queries, k), channels(queries + KEYS, k), k);
        commit_products();
#pragma unroll
        for (int x = 0; x < 32; x++) weights[x] = WIDE ? weight(x) : weights[x];
        await_products<0>();

        const u32 own = shared + SCORES + (n % 2) * PANEL + (warp * 16 + lane / 4) * 128 + lane % 4 * 4;
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const u32 address = own + ((t ^ (lane / 4)) * 16);
            const float* s = scores + 4 * t;
            const float* w = weights + 4 * t;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(pack_bf16(s[0] * w[0], s[1] * w[1])) : "memory");
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(address + 1024), "r"(pack_bf16(s[2] * w[2], s[3] * w[3]))
                         : "memory");
        }
        publish();
#pragma unroll
        for (int g = 0; g < ATTENDING; g++) {
            // Before the other writes to the same place again.
            if (storing) store.load(shared + OUTPUTS + n % 2 * ATTENDING * PANEL, g);
            arrive(SCORED + n % 2 + g * EACH, 256);
        }
        if (storing) store_chunk(n - LEAD);
    }
    for (int n = max(count - LEAD, 0); STORES && n < count; n++) {
#pragma unroll
        for (int g = 0; g < ATTENDING; g++) {
            meet(DONE + n % 2 + g * EACH, 256);
            store.load(shared + OUTPUTS + n % 2 * ATTENDING * PANEL, g);
        }
        store_chunk(n);
    }
}

// How blocks hand the state of a walk to each other: each has a place in `states` for what it gives, and a flag beside it
// for each warpgroup that attends, which is 0 before and after.
struct Handover {
    float* states;
    u32* flags;
    // The block to take from, and the one to give as, or below 0.
    int take_from, give_to;

    __device__ __forceinline__ float* place(int block, int group) const {
        return states + (i64(block) * ATTENDING + group) * (64 * HEAD_DIM) + threadIdx.x % 128;
    }

    __device__ __forceinline__ void give(const float (&state)[HEAD_DIM / 2], int group) const {
        float* to = place(give_to, group);
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 2; x++) asm volatile("st.global.cg.f32 [%0], %1;" ::"l"(to + x * 128), "f"(state[x]) : "memory");
        __threadfence();
        meet(WITHIN + group * EACH, 128);
        if (threadIdx.x % 128 == 0) {
            asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flags + give_to * ATTENDING + group) : "memory");
        }
    }

    __device__ __forceinline__ void take(float (&state)[HEAD_DIM / 2], int group) const {
        if (threadIdx.x % 128 == 0) {
            u32* flag = flags + take_from * ATTENDING + group;
            u32 given = 0;
            while (given == 0) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(given) : "l"(flag) : "memory");
            *flag = 0;
        }
        meet(WITHIN + group * EACH, 128);
        const float* from = place(take_from, group);
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 2; x++) asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(state[x]) : "l"(from + x * 128) : "memory");
    }
};

// Values of a state [key channel, value channel] in memory, as they lie in the accumulators of its transpose.
template <typename Body> __device__ __forceinline__ void for_state(float* state, int block, Body body) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    state += lane % 4 * 2 * HEAD_DIM + block * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (int x = 0; x < HEAD_DIM / 2; x++) body(x, state[(x / 4 * 8 + x % 2) * HEAD_DIM + x % 4 / 2 * 8]);
}

// Carries the state over the chunks and computes the outputs. Where `CARRIED`, the state goes on from, and to, `saved`, and
// the outputs to `out`; where not, they are gradients, which the first warpgroup stores, and the state goes by `handover`.
// Those may be taken through SiLU first, if `WIDE`.
template <bool REVERSED, bool CARRIED>
__device__ __forceinline__ void attend(
    u32 shared, Span span, Walk<REVERSED> walk, int block, float* saved, const Handover& handover, const float* powers,
    float chunk_decay, bool through_silu, bf16* out, i64 out_stride
) {
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
    const int group = ATTENDING == 1 ? 0 : threadIdx.x / 128 - 1;
    const int end = span.position + span.rows;
    const int count = walk.count;

    float state[HEAD_DIM / 2];
    if (!CARRIED && handover.take_from >= 0) {
        handover.take(state, group);
    } else if (!CARRIED || walk.first == 0) {
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 2; x++) state[x] = 0.0f;
    } else {
        for_state(saved, block, [&](int x, float& value) { state[x] = value; });
    }

    for (int n = 0; n < count; n++) {
        const u32 queries = shared + ((walk.before + n) % STAGES) * STAGE, keys = queries + KEYS;
        const u32 values = queries + VALUES + group * PANEL;
        const u32 scores = shared + SCORES + (n % 2) * PANEL;
        // The saved state stays at the last chunk that is whole; nothing reads it after this one.
        if (CARRIED && n > 0 && n == count - 1 && end % CHUNK != 0) {
            for_state(saved, block, [&](int x, float& value) { value = state[x]; });
        }
        u32 high[HEAD_DIM / 16][4], low[HEAD_DIM / 16][4];
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 4; x++) {
            if (CARRIED) {
                split(state[2 * x], state[2 * x + 1], high[x / 4][x % 4], low[x / 4][x % 4]);
                compute_here(low[x / 4][x % 4]);
            } else {
                high[x / 4][x % 4] = pack_bf16(state[2 * x], state[2 * x + 1]);
            }
            compute_here(high[x / 4][x % 4]);
        }
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 2; x++) {
            state[x] *= chunk_decay;
            compute_here(state[x]);
        }
        await_chunk(shared, walk.before + n);

        // The tensor cores take Q S, half of the state's update, the product of scores and values, and the other half;
        // what is not their work lies beside these.
        float sums[32];
        begin_products();
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) multiply(sums, high[k], channels(queries, k), k);
        if (CARRIED) {
#pragma unroll
            for (int k = 0; k < HEAD_DIM / 16; k++) multiply(sums, low[k], channels(queries, k), 1);
        }
        commit_products();

        // Values [token, channel] as left operands [channel, token], plain and decayed to the chunk's end.
        u32 plain[4][4], decayed_high[4][4], decayed_low[4][4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int token = k * 16 + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
            load_tiles_transposed(plain[k], values + token * 128 + ((piece ^ (lane % 8)) * 16));
#pragma unroll
            for (int x = 0; x < 4; x++) {
                const float* decay = powers + CHUNK - 1 - (k * 16 + x / 2 * 8 + lane % 4 * 2);
                const float a = low_float(plain[k][x]) * decay[0], b = high_float(plain[k][x]) * decay[-1];
                if (CARRIED) {
                    split(a, b, decayed_high[k][x], decayed_low[k][x]);
                    compute_here(decayed_low[k][x]);
                } else {
                    decayed_high[k][x] = pack_bf16(a, b);
                }
                compute_here(decayed_high[k][x]);
            }
        }
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_rows(state, decayed_high[k], tokens(keys, k));
        commit_products();

        await_products<1>();
#pragma unroll
        for (int x = 0; x < 32; x++) sums[x] *= powers[x / 4 * 8 + lane % 4 * 2 + x % 2 + 1];
        meet(SCORED + n % 2 + group * EACH, 256);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(sums, plain[k], channels(scores, k), 1);
        commit_products();
        if (CARRIED) {
#pragma unroll
            for (int k = 0; k < 4; k++) multiply_rows(state, decayed_low[k], tokens(keys, k));
            commit_products();
            await_products<1>();
        } else {
            await_products<0>();
        }
#if WGMMA
        if (WIDE && through_silu) {
            await_before(shared, walk.before + n);
            const u32 panel = shared + BEFORE + ((walk.before + n) % 2 * ATTENDING + group) * PANEL;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int token = k * 16 + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
                u32 before[4];
                load_tiles_transposed(before, panel + token * 128 + ((piece ^ (lane % 8)) * 16));
#pragma unroll
                for (int x = 0; x < 4; x++) {
                    sums[8 * k + 2 * x] *= silu_derivative(low_float(before[x]));
                    sums[8 * k + 2 * x + 1] *= silu_derivative(high_float(before[x]));
                }
            }
        }
#endif
        // Through shared memory, so that rows are written whole.
        const Part part = part_of(span, walk.chunk(n));
        const u32 outputs = shared + OUTPUTS + (n % 2 * ATTENDING + group) * PANEL;
#pragma unroll
        for (int t = 0; t < 8; t += 2) {
            const float* s = sums + 4 * t;
            const int token = (t + lane / 16) * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
            store_tiles_transposed(outputs + token * 128 + ((piece ^ (lane % 8)) * 16), pack_bf16(s[0], s[1]),
                                   pack_bf16(s[2], s[3]), pack_bf16(s[4], s[5]), pack_bf16(s[6], s[7]));
        }
        if (CARRIED) {
            meet(WITHIN, 128);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int token = thread / 8 + 16 * r, piece = thread % 8;
                int4 x;
                asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                             : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                             : "r"(outputs + token * 128 + ((piece ^ (token % 8)) * 16)));
                // Without a branch, across which the compiler would not leave products in flight.
                asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.v4.b32 [%0], {%1,%2,%3,%4};}"
                             ::"l"(out + (i64(part.row) + token) * out_stride + piece * 8), "r"(x.x), "r"(x.y), "r"(x.z),
                             "r"(x.w), "r"(int(token >= part.begin && token < part.end))
                             : "memory");
            }
            await_products<0>();
        }
        if (!CARRIED || n + LEAD < count) arrive(DONE + n % 2 + group * EACH, 256);
    }
    if (!CARRIED && handover.give_to >= 0) handover.give(state, group);
    if (CARRIED && end % CHUNK == 0) for_state(saved, block, [&](int x, float& value) { value = state[x]; });
}

// Readies the barriers of arrival, and shows all threads what others wrote.
__device__ __forceinline__ void begin_block(u32 shared) {
#if WGMMA
    if (threadIdx.x == 0) {
        for (int n = 0; n < STAGES + 2 * WIDE; n++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared + ARRIVED + n * 8) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#endif
    __syncthreads();
}


