// How chunks come into a block's shared memory, and gradients out of it, for chunks.cuh.

constexpr int KEY_PANELS = HEAD_DIM / 64;
constexpr int KEYS = KEY_PANELS * PANEL;
constexpr int VALUES = 2 * KEYS;
// Warpgroups that attend, each with 64 channels of the values.
constexpr int ATTENDING = ATTENDING_WARPGROUPS;
constexpr int THREADS = 128 * (1 + ATTENDING);
constexpr int STAGE = VALUES + ATTENDING * PANEL;
constexpr int STAGES = WGMMA && ATTENDING == 1 ? 4 : 3;
// How many chunks ahead of the first warpgroup's work they are fetched, and how many it is ahead of the others' at
// most.
constexpr int AHEAD = STAGES - 2;
constexpr int LEAD = 2;
constexpr int SCORES = STAGES * STAGE;
constexpr int OUTPUTS = SCORES + 2 * PANEL;
// With two warpgroups that attend, these take gradients through SiLU, for which its inputs come to shared memory. One
// leaves that to the first, which would take too long for two. Nor has that one the registers to keep scores' weights.
constexpr bool WIDE = ATTENDING > 1;
constexpr int BEFORE = OUTPUTS + 2 * ATTENDING * PANEL;
constexpr int ARRIVED = BEFORE + (WIDE ? 2 * ATTENDING * PANEL : 0);
constexpr int BEFORE_ARRIVED = ARRIVED + STAGES * 8;
// Entries before and behind the table of decays, all 0, for weights that are not kept.
constexpr int MARGIN = WIDE ? CHUNK : 0;
constexpr int TABLE = BEFORE_ARRIVED + 2 * 8 + MARGIN * 4;

// Barriers of the first warpgroup and one that attends, two each, for even and odd chunks, and one within that, which
// come again for a second that attends; and barriers within the first, and of the whole block.
enum Barrier { WHOLE = 0, SCORED = 1, DONE = 3, LOADED = 5, WITHIN = 7, WITHIN_FIRST = 8, EACH = 8 };

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

// As the copy engine reads it.
struct __align__(64) TensorMap {
    u64 words[16];
};

// Rows of which the queries, keys or values of a head are some channels: for the copy engine, as a map and the first
// channel, and for threads.
struct Rows {
    const void* map;
    int channel;
    const bf16* at;
    i64 stride;
};

// What a block works on; of the values, its channels.
struct Operands {
    Rows queries, keys, values;
};

#if WGMMA

// The barrier of a stage, at which its bytes arrive, and that of the values before SiLU.
__device__ __forceinline__ u32 arrival(u32 shared, int n) { return shared + ARRIVED + n % STAGES * 8; }
__device__ __forceinline__ u32 before_arrival(u32 shared, int n) { return shared + BEFORE_ARRIVED + n % 2 * 8; }

__device__ __forceinline__ void await_arrival(u32 barrier, int parity) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again;}"
                 ::"r"(barrier), "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void await_chunk(u32 shared, int n) {
    await_arrival(arrival(shared, n), n / STAGES % 2);
}

__device__ __forceinline__ void await_before(u32 shared, int n) { await_arrival(before_arrival(shared, n), n / 2 % 2); }

__device__ __forceinline__ void expect(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Copies a panel whose first channel and row are given.
__device__ __forceinline__ void copy_panel(u32 target, const void* map, int channel, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(target), "l"(map), "r"(channel), "r"(row), "r"(barrier)
                 : "memory");
}

#else

__device__ __forceinline__ void await_chunk(u32, int n) { meet(LOADED + n % 2, 256); }

#endif

#if WGMMA

// Copies queries, keys and a block's values of the 64 rows from `row` on.
__device__ __forceinline__ void copy_chunk(u32 stage, const Operands& x, int row, u32 barrier) {
    expect(barrier, STAGE);
#pragma unroll
    for (int p = 0; p < KEY_PANELS; p++) {
        copy_panel(stage + p * PANEL, x.queries.map, x.queries.channel + p * 64, row, barrier);
        copy_panel(stage + KEYS + p * PANEL, x.keys.map, x.keys.channel + p * 64, row, barrier);
    }
#pragma unroll
    for (int p = 0; p < ATTENDING; p++)
        copy_panel(stage + VALUES + p * PANEL, x.values.map, x.values.channel + p * 64, row, barrier);
}

#endif

// Chunks of a span, in the order of time or, to carry gradients, against it. There, what a key weighs decays with the
// distance to queries before it, and the table of decays is turned around: entry n has that of CHUNK - n tokens.
template <bool REVERSED> struct Walk {
    static constexpr bool AGAINST_TIME = REVERSED;
    int first, count;
    // How many chunks the block has walked over before; stages are taken in turn.
    int before;

    __device__ __forceinline__ int chunk(int n) const { return REVERSED ? first - n : first + n; }

    // What key j weighs for query i of its chunk.
    static __device__ __forceinline__ float weight(const float* table, int i, int j) {
        const int distance = REVERSED ? j - i : i - j;
        return MARGIN > 0 || distance >= 0 ? table[REVERSED ? CHUNK - distance : distance] : 0.0f;
    }
};

template <bool REVERSED> __device__ __forceinline__ Walk<REVERSED> walk_over(Span span) {
    const int first = span.position / CHUNK, last = (span.position + span.rows - 1) / CHUNK;
    return {REVERSED ? last : first, last - first + 1, 0};
}

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
__device__ __forceinline__ void fetch_rows(u32 shared, const Rows& rows, Part part, const bf16* tail) {
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
        const bf16* row = early ? tail + place * HEAD_DIM : rows.at + (i64(part.row) + place) * rows.stride;
        copy_async(shared + r * STEP * 128, present ? row + piece * 8 : rows.at, present);
    }
}

// Where the gradients of a block's channels go, in rows of a batch, and those channels before SiLU, unless null.
struct Target {
    bf16* out;
    Rows before;
};

__device__ __forceinline__ float silu_derivative(float x) {
    float gate = 1.0f + __expf(-x);
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(gate));
    return fmaf(x * gate, 1.0f - gate, gate);
}

#if WGMMA

// Copies a block's channels before SiLU of the 64 rows from `row` on. Rows that are not the span's do no harm.
__device__ __forceinline__ void copy_before(u32 shared, const Target& target, int n, int row) {
    const u32 barrier = before_arrival(shared, n);
    expect(barrier, ATTENDING * PANEL);
#pragma unroll
    for (int p = 0; p < ATTENDING; p++) {
        copy_panel(shared + BEFORE + (n % 2 * ATTENDING + p) * PANEL, target.before.map, target.before.channel + p * 64, row,
                   barrier);
    }
}

#endif

// Moves the gradients of a chunk from shared memory to where they go, through SiLU if those that attend do not; of each
// panel a thread has 16 bytes of each 16th row.
struct Store {
    const Target& target;
    int4 before[4], x[ATTENDING][4];

    __device__ __forceinline__ bool through_silu() const { return !WIDE && target.before.at != nullptr; }
    static __device__ __forceinline__ int place(int r) { return threadIdx.x / 8 + 16 * r; }
    __device__ __forceinline__ i64 offset(Part part, int place) const {
        return (i64(part.row) + place) * target.before.stride + threadIdx.x % 8 * 8;
    }

    // The parts may come long before they are used.
    __device__ __forceinline__ void load_before(Part part) {
        if (!through_silu()) return;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            asm volatile("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(before[r].x), "=r"(before[r].y), "=r"(before[r].z), "=r"(before[r].w)
                         : "l"(target.before.at + offset(part, min(place(r), part.end - 1))));
        }
    }

    __device__ __forceinline__ void load(u32 outputs, int panel) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int4& to = x[panel][r];
            asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                         : "r"(panel_piece(outputs + panel * PANEL, place(r), threadIdx.x % 8)));
        }
    }

    static __device__ __forceinline__ int gated(int gradients, int before) {
        return pack_bf16(low_float(gradients) * silu_derivative(low_float(before)),
                         high_float(gradients) * silu_derivative(high_float(before)));
    }

    __device__ __forceinline__ void store(Part part) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            bf16* to = target.out + offset(part, place(r));
#pragma unroll
            for (int panel = 0; panel < ATTENDING; panel++) {
                int4 y = x[panel][r];
                if (through_silu()) {
                    y.x = gated(y.x, before[r].x);
                    y.y = gated(y.y, before[r].y);
                    y.z = gated(y.z, before[r].z);
                    y.w = gated(y.w, before[r].w);
                }
                if (place(r) < part.end) {
                    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to + panel * 64), "r"(y.x), "r"(y.y),
                                 "r"(y.z), "r"(y.w)
                                 : "memory");
                }
            }
        }
    }
};
