// Lightning attention over spans of any length on tensor cores, in bf16. A block takes 64 value channels of one head of
// one span, chunk by chunk. With WGMMA it uses Hopper's warpgroup products and its copy engine, else what every device
// since Ampere has; the order of things is the same.
//
// Its second warpgroup computes everything transposed: the state S^T [value channel, key channel] is an accumulator
// whose registers are, as they lie, also the left operand of O^T = S^T Q^T. So the state stays in f32 in registers
// from the first chunk to the last. It enters that product as the sum of two bf16 values, of 16 bits together, and so
// do the decayed values of the update; the scores and the output are rounded to bf16 once.
//
// Its first warpgroup fetches chunks ahead of their use and computes their scores one ahead of the second. A chunk that
// lies whole in the span comes through the copy engine; one that begins in the tail or ends before its grid point, and
// without WGMMA every one, comes row by row.

// 64 rows of 64 bf16 channels, whose 16-byte pieces are swizzled over the 128 bytes of a row.
constexpr int PANEL = CHUNK * 128;
constexpr int KEY_PANELS = HEAD_DIM / 64;
constexpr int KEYS = KEY_PANELS * PANEL;
constexpr int VALUES = 2 * KEYS;
constexpr int STAGE = VALUES + PANEL;
constexpr int STAGES = WGMMA ? 4 : 3;
// How many chunks ahead of the first warpgroup's work they are fetched, and how many it is ahead of the second's at
// most.
constexpr int AHEAD = STAGES - 2;
constexpr int LEAD = 2;
constexpr int SCORES = STAGES * STAGE;
constexpr int OUTPUTS = SCORES + 2 * PANEL;
constexpr int ARRIVED = OUTPUTS + 2 * PANEL;
constexpr int TABLE = ARRIVED + STAGES * 8;

// Barriers between the warpgroups, two each, for even and odd chunks, and barriers within them.
enum Barrier { SCORED = 1, DONE = 3, LOADED = 5, WITHIN_FIRST = 7, WITHIN_SECOND = 8 };

__device__ __forceinline__ void meet(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Keeps the compiler from moving the value's computation to where it is used, between products in flight.
__device__ __forceinline__ void compute_here(u32& x) { asm volatile("" : "+r"(x)); }
__device__ __forceinline__ void compute_here(float& x) { asm volatile("" : "+f"(x)); }

// Two values as sums of two bf16 values each, cut off after 16 bits.
__device__ __forceinline__ void split(float x, float y, u32& high, u32& low) {
    const u32 x_bits = __float_as_uint(x), y_bits = __float_as_uint(y);
    high = __byte_perm(x_bits, y_bits, 0x7632);
    const float x_rest = x - __uint_as_float(x_bits & 0xffff0000u);
    const float y_rest = y - __uint_as_float(y_bits & 0xffff0000u);
    low = __byte_perm(__float_as_uint(x_rest), __float_as_uint(y_rest), 0x7632);
}

#if WGMMA

// As the copy engine reads it.
struct __align__(64) TensorMap {
    u64 words[16];
};

// The barrier of a stage, at which its bytes arrive.
__device__ __forceinline__ u32 arrival(u32 shared, int n) { return shared + ARRIVED + n % STAGES * 8; }

__device__ __forceinline__ void await_chunk(u32 shared, int n) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again;}"
                 ::"r"(arrival(shared, n)), "r"(n / STAGES % 2)
                 : "memory");
}

// Copies a panel whose first channel and row are given.
__device__ __forceinline__ void copy_panel(u32 target, const void* map, int channel, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(target), "l"(map), "r"(channel), "r"(row), "r"(barrier)
                 : "memory");
}

// Copies queries, keys and a block's values of the 64 rows from `row` on.
__device__ __forceinline__ void copy_chunk(u32 stage, const void* map, int head, int block, int row, u32 barrier) {
    const int channel = head * 3 * HEAD_DIM;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(STAGE) : "memory");
#pragma unroll
    for (int p = 0; p < 2 * KEY_PANELS; p++) copy_panel(stage + p * PANEL, map, channel + p * 64, row, barrier);
    copy_panel(stage + VALUES, map, channel + 2 * HEAD_DIM + block * 64, row, barrier);
}

// Makes what this thread wrote to shared memory visible to the tensor cores.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Describes swizzled panels to the tensor cores: groups of 8 rows follow one another, and so do panels.
// An address within a cluster says above its lowest 18 bits whose shared memory it is, which has no place here.
__device__ __forceinline__ u64 matrix(u32 address) {
    return u64((address & 0x3ffff) >> 4) | u64(PANEL >> 4) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

// Channels 16 k to 16 k + 15 of rows whose channels are summed over.
__device__ __forceinline__ u64 channels(u32 panels, int k) {
    return matrix(panels + (k / 4) * PANEL + (k % 4) * 32);
}

// Rows 16 k to 16 k + 15, which are summed over.
__device__ __forceinline__ u64 tokens(u32 panels, int k) { return matrix(panels + k * 16 * 128); }

#define SUMS8(d, i)                                                                                           \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SUMS32(d, i) SUMS8(d, i), SUMS8(d, i + 8), SUMS8(d, i + 16), SUMS8(d, i + 24)
#define NAMES32                                                                                         \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
    "%27,%28,%29,%30,%31}"
#define NAMES64                                                                                         \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
    "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
    "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

// d = a b^T, or d += a b^T, over 16 channels: both operands in shared memory.
__device__ __forceinline__ void multiply(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32 ", %32, %33, p, 1, 1, 0, 0;}"
                 : SUMS32(d, 0)
                 : "l"(a), "l"(b), "r"(add));
}

// The same with the left operand in registers.
__device__ __forceinline__ void multiply(float (&d)[32], const u32 (&a)[4], u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0;"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32
                 ", {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
                 : SUMS32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// d += a b over 16 rows of b, left operand in registers.
__device__ __forceinline__ void multiply_rows(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " NAMES64
                 ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : SUMS32(d, 0), SUMS32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void multiply_rows(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32
                 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : SUMS32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Stores four 8 by 8 tiles, each transposed; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void store_tiles_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

#else

// The same products by warps: each has the 16 rows of its place in the warpgroup. They are done when they are issued.
__device__ __forceinline__ void publish() {}
__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void commit_products() {}
template <int PENDING> __device__ __forceinline__ void await_products() {}

__device__ __forceinline__ void await_chunk(u32, int n) { meet(LOADED + n % 2, 256); }

struct Channels {
    u32 panel;
    int piece;
};
__device__ __forceinline__ Channels channels(u32 panels, int k) { return {panels + k / 4 * PANEL, k % 4 * 2}; }

struct Tokens {
    u32 panels;
    int first;
};
__device__ __forceinline__ Tokens tokens(u32 panels, int k) { return {panels, k * 16}; }

__device__ __forceinline__ u32 piece_address(u32 panel, int row, int piece) {
    return panel + row * 128 + ((piece ^ (row % 8)) * 16);
}

template <int COUNT>
__device__ __forceinline__ void multiply_tiles(float (&d)[COUNT], int tile, const u32 (&a)[4], const u32 (&b)[4]) {
    mma_bf16(reinterpret_cast<float(&)[4]>(d[4 * tile]), a, b[0], b[1]);
    mma_bf16(reinterpret_cast<float(&)[4]>(d[4 * tile + 4]), a, b[2], b[3]);
}

__device__ __forceinline__ void multiply(float (&d)[32], const u32 (&a)[4], Channels b, int add) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int x = 0; x < 32; x++) d[x] = add ? d[x] : 0.0f;
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
        u32 tiles[4];
        load_tiles(tiles, piece_address(b.panel, (t + lane / 16) * 8 + lane % 8, b.piece + lane / 8 % 2));
        multiply_tiles(d, t, a, tiles);
    }
}

__device__ __forceinline__ void multiply(float (&d)[32], Channels a, Channels b, int add) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    u32 tiles[4];
    load_tiles(tiles, piece_address(a.panel, warp * 16 + lane % 16, a.piece + lane / 16));
    multiply(d, tiles, b, add);
}

template <int COUNT>
__device__ __forceinline__ void multiply_rows(float (&d)[COUNT], const u32 (&a)[4], Tokens b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < COUNT / 4; t += 2) {
        u32 tiles[4];
        load_tiles_transposed(tiles, piece_address(b.panels + t / 8 * PANEL, b.first + lane % 16, t % 8 + lane / 16));
        multiply_tiles(d, t, a, tiles);
    }
}

__device__ __forceinline__ u32 transpose(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// Stores four 8 by 8 tiles, each transposed; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void store_tiles_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    const u32 tiles[4] = {transpose(a), transpose(b), transpose(c), transpose(d)};
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = __shfl_sync(~0u, address, i * 8 + lane / 4);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(row + lane % 4 * 4), "r"(tiles[i]) : "memory");
    }
}

#endif

// The part of a span that lies in one chunk.
struct Part {
    int row;    // of the batch, for place 0 of the chunk
    int begin;  // first place of the span
    int end;    // the one after its last

    __device__ __forceinline__ bool whole() const { return begin == 0 && end == CHUNK; }
};

__device__ __forceinline__ Part part_of(Span span, int chunk) {
    const int offset = chunk * CHUNK - span.position;
    return Part{span.first + offset, max(0, -offset), min(CHUNK, span.rows - offset)};
}

// Fetches `COLUMNS` channels of a chunk's rows: the span's from the batch, earlier ones from `tail`, zeros after.
template <int COLUMNS>
__device__ __forceinline__ void fetch_rows(u32 shared, const bf16* batch, i64 stride, Part part, const bf16* tail) {
    constexpr int PIECES = COLUMNS / 8;
    constexpr int STEP = 128 / PIECES;
    const int piece = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
    // Rows of one thread lie a multiple of 8 apart, so that the swizzle is the same for all.
    shared += (piece / 8) * PANEL + first * 128 + ((piece % 8) ^ (first % 8)) * 16;
#pragma unroll 4
    for (int r = 0; r < CHUNK / STEP; r++) {
        const int place = first + r * STEP;
        const bool early = tail != nullptr && place < part.begin;
        const bool present = place < part.end && (early || place >= part.begin);
        const bf16* row = early ? tail + place * HEAD_DIM : batch + (i64(part.row) + place) * stride;
        copy_async(shared + r * STEP * 128, present ? row + piece * 8 : batch, present);
    }
}

// Fetches chunks and computes their scores P = (Q K^T) weighted by the decay between the two tokens.
__device__ __forceinline__ void fetch_and_score(
    u32 shared, const void* map, int head, const bf16* batch, i64 stride, Span span, int block, const bf16* tail,
    const float* powers
) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_chunk = span.position / CHUNK;
    const int count = (span.position + span.rows - 1) / CHUNK - first_chunk + 1;

    const auto fetch_chunk = [&](int n) {
        if (n < count) {
            const Part part = part_of(span, first_chunk + n);
            const u32 stage = shared + (n % STAGES) * STAGE;
#if WGMMA
            if (part.whole()) {
                if (threadIdx.x == 0) copy_chunk(stage, map, head, block, part.row, arrival(shared, n));
                return;
            }
#endif
            fetch_rows<HEAD_DIM>(stage, batch, stride, part, nullptr);
            fetch_rows<HEAD_DIM>(stage + KEYS, batch + HEAD_DIM, stride, part, n == 0 ? tail : nullptr);
            fetch_rows<64>(stage + VALUES, batch + 2 * HEAD_DIM + block * 64, stride, part,
                           n == 0 ? tail + CHUNK * HEAD_DIM + block * 64 : nullptr);
        }
        commit_copies();
    };
#pragma unroll
    for (int n = 0; n < AHEAD; n++) fetch_chunk(n);

    float weights[32];
#pragma unroll
    for (int x = 0; x < 32; x++) {
        const int i = warp * 16 + lane / 4 + (x % 4 / 2) * 8, j = x / 4 * 8 + lane % 4 * 2 + x % 2;
        weights[x] = j <= i ? powers[max(i - j, 0)] : 0.0f;
    }

    for (int n = 0; n < count; n++) {
        // The second warpgroup is done with the stage to be fetched into, and with these scores' place.
        if (n >= LEAD) meet(DONE + n % 2, 256);
        fetch_chunk(n + AHEAD);
#if WGMMA
        if (!part_of(span, first_chunk + n).whole()) {
            await_copies<0>();
            publish();
            meet(WITHIN_FIRST, 128);
            if (threadIdx.x == 0) {
                asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(arrival(shared, n)) : "memory");
            }
        }
        await_chunk(shared, n);
#else
        await_copies<AHEAD>();
        meet(WITHIN_FIRST, 128);
        arrive(LOADED + n % 2, 256);
#endif

        const u32 queries = shared + (n % STAGES) * STAGE;
        float scores[32];
        begin_products();
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) multiply(scores, channels(queries, k), channels(queries + KEYS, k), k);
        commit_products();
        await_products<0>();

        const u32 target = shared + SCORES + (n % 2) * PANEL + (warp * 16 + lane / 4) * 128 + lane % 4 * 4;
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const u32 address = target + ((t ^ (lane / 4)) * 16);
            const float* s = scores + 4 * t;
            const float* w = weights + 4 * t;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(pack_bf16(s[0] * w[0], s[1] * w[1])) : "memory");
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(address + 1024), "r"(pack_bf16(s[2] * w[2], s[3] * w[3]))
                         : "memory");
        }
        publish();
        arrive(SCORED + n % 2, 256);
    }
}

// Values of a state [key channel, value channel] in memory, as they lie in the accumulators of its transpose.
template <typename Body> __device__ __forceinline__ void for_state(float* state, int block, Body body) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    state += lane % 4 * 2 * HEAD_DIM + block * 64 + warp * 16 + lane / 4;
#pragma unroll
    for (int x = 0; x < HEAD_DIM / 2; x++) body(x, state[(x / 4 * 8 + x % 2) * HEAD_DIM + x % 4 / 2 * 8]);
}

// Carries the state over the chunks and computes the outputs.
__device__ __forceinline__ void attend(
    u32 shared, Span span, int block, float* saved, const float* powers, bf16* out, i64 out_stride
) {
    const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
    const int first_chunk = span.position / CHUNK, end = span.position + span.rows;
    const int count = (end - 1) / CHUNK - first_chunk + 1;
    const float chunk_decay = powers[CHUNK];

    float state[HEAD_DIM / 2];
    if (first_chunk == 0) {
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 2; x++) state[x] = 0.0f;
    } else {
        for_state(saved, block, [&](int x, float& value) { state[x] = value; });
    }

    for (int n = 0; n < count; n++) {
        const u32 queries = shared + (n % STAGES) * STAGE, keys = queries + KEYS, values = queries + VALUES;
        const u32 scores = shared + SCORES + (n % 2) * PANEL;
        // The saved state stays at the last chunk that is whole; nothing reads it after this one.
        if (n > 0 && n == count - 1 && end % CHUNK != 0) {
            for_state(saved, block, [&](int x, float& value) { value = state[x]; });
        }
        u32 high[HEAD_DIM / 16][4], low[HEAD_DIM / 16][4];
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 4; x++) {
            split(state[2 * x], state[2 * x + 1], high[x / 4][x % 4], low[x / 4][x % 4]);
            compute_here(high[x / 4][x % 4]);
            compute_here(low[x / 4][x % 4]);
        }
#pragma unroll
        for (int x = 0; x < HEAD_DIM / 2; x++) {
            state[x] *= chunk_decay;
            compute_here(state[x]);
        }
        await_chunk(shared, n);

        // The tensor cores take Q S, half of the state's update, the product of scores and values, and the other half;
        // what is not their work lies beside these.
        float sums[32];
        begin_products();
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) multiply(sums, high[k], channels(queries, k), k);
#pragma unroll
        for (int k = 0; k < HEAD_DIM / 16; k++) multiply(sums, low[k], channels(queries, k), 1);
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
                split(low_float(plain[k][x]) * decay[0], high_float(plain[k][x]) * decay[-1], decayed_high[k][x],
                      decayed_low[k][x]);
                compute_here(decayed_high[k][x]);
                compute_here(decayed_low[k][x]);
            }
        }
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_rows(state, decayed_high[k], tokens(keys, k));
        commit_products();

        await_products<1>();
#pragma unroll
        for (int x = 0; x < 32; x++) sums[x] *= powers[x / 4 * 8 + lane % 4 * 2 + x % 2 + 1];
        meet(SCORED + n % 2, 256);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(sums, plain[k], channels(scores, k), 1);
        commit_products();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_rows(state, decayed_low[k], tokens(keys, k));
        commit_products();

        await_products<1>();
        // Through shared memory, so that rows are written whole.
        const Part part = part_of(span, first_chunk + n);
        const u32 outputs = shared + OUTPUTS + (n % 2) * PANEL;
#pragma unroll
        for (int t = 0; t < 8; t += 2) {
            const float* s = sums + 4 * t;
            const int token = (t + lane / 16) * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
            store_tiles_transposed(outputs + token * 128 + ((piece ^ (lane % 8)) * 16), pack_bf16(s[0], s[1]),
                                   pack_bf16(s[2], s[3]), pack_bf16(s[4], s[5]), pack_bf16(s[6], s[7]));
        }
        meet(WITHIN_SECOND, 128);
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
        if (n + LEAD < count) arrive(DONE + n % 2, 256);
    }
    if (end % CHUNK == 0) for_state(saved, block, [&](int x, float& value) { value = state[x]; });
}

// The blocks of a head read the same queries and keys: they run together, so that memory gives these once.
#if WGMMA && HEAD_DIM > 64
#define TOGETHER __cluster_dims__(HEAD_DIM / 64, 1, 1)
#else
#define TOGETHER
#endif

// Grid: blocks of 64 value channels, heads, spans.
extern "C" __global__ void __launch_bounds__(256, 1) TOGETHER lightning_prefill(
    const bf16* projected, i64 stride, const int4* spans, int rows, int slots, const float* powers, float* states,
    const bf16* tails, bf16* out
#if WGMMA
    ,
    const __grid_constant__ TensorMap map
#endif
) {
    extern __shared__ unsigned char dynamic_shared[];
    const int block = blockIdx.x, head = blockIdx.y, heads = gridDim.y;
    const u32 shared = (shared_address(dynamic_shared) + 1023) & ~1023u;
    float* table = reinterpret_cast<float*>(dynamic_shared + (shared - shared_address(dynamic_shared)) + TABLE);
    for (int n = threadIdx.x; n <= CHUNK; n += 256) table[n] = powers[head * POWERS + n];
    const void* map_address = nullptr;
#if WGMMA
    map_address = &map;
    if (threadIdx.x == 0) {
        for (int n = 0; n < STAGES; n++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrival(shared, n)) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
#endif
    __syncthreads();
    wait_for_previous();
    let_next_start();
    const Span span = span_at(Spans{spans, rows, slots}, blockIdx.z);
    if (span.slot < 0) return;

    const i64 cache = i64(span.slot) * heads + head;
    if (threadIdx.x < 128) {
        fetch_and_score(shared, map_address, head, projected + head * 3 * HEAD_DIM, stride, span, block,
                        tails + cache * 2 * CHUNK * HEAD_DIM, table);
    } else {
        attend(shared, span, block, states + cache * HEAD_DIM * HEAD_DIM, table,
               out + head * HEAD_DIM + block * 64, i64(heads) * HEAD_DIM);
    }
}
