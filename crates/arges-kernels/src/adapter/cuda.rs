//! Adapters on a GPU. The base stays in its own precision, and all merged matrices are made anew by one kernel
//! (`adapter.cu`). For gradients the adapters of one of the model's matrices stand as a stack: their `A` one below the
//! other, and their `B` side by side, each beside zeros for the rows of the others. So the products that train whole
//! matrices train adapters too, two for what goes through `A` and `B` and two for the gradients, of all experts at once.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{Activations, Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};
use crate::matmul::cuda::{
    Columns, DeviceMatrix, DeviceRows, GATE_GROUP, GradientPlace, Output, ProductGradients, Products, Rows,
    WeightGradient,
};
use crate::matmul::{Element, RowMajor, Stored};

/// The kernels.
pub const SOURCE: Source = Source { name: "adapter/adapter.cu", text: include_str!("adapter.cu") };

/// Rows and columns of a tile of merged weights.
const TILE: [usize; 2] = [64, 128];
/// Columns of a stack are a multiple of so many, and so are the places of bases: what kernels read in place.
const ALIGNED: usize = 8;
/// Values that a block of `collect` adds.
const COLLECTED: usize = 2048;

/// An adapter of some rows of a matrix.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Whose matrix.
    pub expert: usize,
    /// The rows. Those of a gated matrix are counted through all gates first, then all ups.
    pub rows: Range<usize>,
    /// The place of `A`, `[rank, inputs]`, among the values.
    pub a: usize,
    /// That of `B`, `[rows, rank]`.
    pub b: usize,
    /// How its base is kept.
    pub base: Element,
}

/// One of a model's matrices, all experts', of which some rows have adapters.
#[derive(Debug, Clone)]
pub struct AdaptedMatrix {
    /// Experts.
    pub experts: usize,
    /// Outputs.
    pub outputs: usize,
    /// Inputs.
    pub k: usize,
    /// Whether gates and ups take turns.
    pub gated: bool,
    /// Rows of activations at most.
    pub most_rows: usize,
    /// One at least. Those of one expert do not overlap.
    pub adapters: Vec<Adapter>,
}

/// As `adapter.cu` knows it.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Entry {
    base: u64,
    merged: u64,
    down: u64,
    up: u64,
    a: i64,
    b: i64,
    from_a: i64,
    from_b: i64,
    first_tile: i64,
    rows: i32,
    cols: i32,
    first: i32,
    gates: i32,
    stride: i32,
    base_rounded: i32,
}

/// The adapters of one matrix.
struct Stack {
    /// `[experts, width, k]` and `[experts, outputs, width]`, rounded as activations are.
    down: DeviceMatrix,
    up: DeviceMatrix,
    gated: bool,
    /// Their entries, and the expert of each.
    entries: Range<usize>,
    experts: Vec<usize>,
}

/// What goes through a matrix, for gradients of its adapters.
pub struct Step<'a> {
    /// Gradients by the outputs.
    pub dy: &'a DeviceRows,
    /// The inputs.
    pub x: &'a DeviceRows,
    /// Whose they are.
    pub rows: Rows<'a>,
}

/// Adapters of several matrices of one model, their base, and the compiled kernels.
pub struct AdaptersCuda {
    cuda: Arc<Cuda>,
    merge: Kernel,
    collect: Kernel,
    rank: usize,
    scale: f32,
    stacks: Vec<Stack>,
    entries: Vec<Entry>,
    tiles: usize,
    /// The base of each adapter that is kept so.
    exact: Buffer<f32>,
    rounded: Buffer<u16>,
    /// Entries as they were sent last.
    sent: Vec<Entry>,
    table: Buffer<Entry>,
    /// `[rows, width]`: inputs through `A`, and gradients through `B`.
    inner: Activations,
    dinner: Activations,
    /// Gradients of a stack: by `up`, and behind them by `down`.
    of_stack: Buffer<f32>,
    transposed: DeviceMatrix,
}

impl AdaptersCuda {
    /// Takes the memory for adapters of that rank and scale in a model whose matrices and activations are of that element,
    /// and compiles the kernels.
    ///
    /// # Errors
    /// When that fails.
    ///
    /// # Panics
    /// When an adapter is not one of its matrix's rows.
    pub fn new(
        cuda: &Arc<Cuda>,
        element: Element,
        rank: usize,
        scale: f32,
        matrices: &[AdaptedMatrix],
    ) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &[]);
        let [mut exact, mut rounded] = [0; 2];
        let (mut stacks, mut entries, mut tiles) = (Vec::new(), Vec::<Entry>::new(), 0);
        let (mut inner, mut of_stack, mut of_up) = (0, 0, 0);
        for matrix in matrices {
            let AdaptedMatrix { experts, outputs, k, gated, most_rows, ref adapters } = *matrix;
            let mut slots: Vec<usize> = adapters.iter().map(|adapter| adapter.rows.start).collect();
            slots.sort_unstable();
            slots.dedup();
            let width = (slots.len() * rank).next_multiple_of(ALIGNED);
            inner = inner.max(most_rows * width);
            of_stack = of_stack.max(experts * (outputs + k) * width);
            of_up = of_up.max(experts * outputs * width);
            let down = DeviceMatrix::zeroed(cuda, experts, width, k, element)?;
            let up = DeviceMatrix::zeroed(cuda, experts, outputs, width, element)?;
            let first = entries.len();
            for Adapter { expert, rows, a, b, base } in adapters {
                assert!(*expert < experts && rows.end <= outputs && !rows.is_empty(), "rows {rows:?}");
                let column = slots.binary_search(&rows.start).unwrap_or(0) * rank;
                let place = if *base == Element::Bf16 { &mut rounded } else { &mut exact };
                entries.push(Entry {
                    // Its place, until there is memory.
                    base: *place as u64,
                    merged: 0,
                    down: down.data().address((expert * width + column) * k),
                    up: up.data().address(expert * outputs * width + column),
                    a: *a as i64,
                    b: *b as i64,
                    from_a: ((expert * width + column) * k) as i64,
                    from_b: ((expert * outputs + rows.start) * width + column) as i64,
                    first_tile: tiles as i64,
                    rows: rows.len() as i32,
                    cols: k as i32,
                    first: rows.start as i32,
                    gates: if gated { (outputs / 2) as i32 } else { 0 },
                    stride: width as i32,
                    base_rounded: i32::from(*base == Element::Bf16),
                });
                *place += (rows.len() * k).next_multiple_of(ALIGNED);
                tiles += rows.len().div_ceil(TILE[0]) * k.div_ceil(TILE[1]);
            }
            let experts = adapters.iter().map(|adapter| adapter.expert).collect();
            stacks.push(Stack { down, up, gated, entries: first..entries.len(), experts });
        }
        let (exact, rounded) = (Buffer::zeroed(cuda, exact)?, Buffer::zeroed(cuda, rounded)?);
        for entry in &mut entries {
            let place = entry.base as usize;
            entry.base = if entry.base_rounded != 0 { rounded.address(place) } else { exact.address(place) };
        }
        let merge = if element == Element::Bf16 { "merge_bf16" } else { "merge_f32" };
        Ok(Self {
            cuda: Arc::clone(cuda),
            merge: module.kernel(merge)?,
            collect: module.kernel("collect")?,
            rank,
            scale,
            stacks,
            table: Buffer::zeroed(cuda, entries.len())?,
            entries,
            tiles,
            exact,
            rounded,
            sent: Vec::new(),
            inner: Activations::zeroed(cuda, element, inner)?,
            dinner: Activations::zeroed(cuda, element, inner)?,
            of_stack: Buffer::zeroed(cuda, of_stack)?,
            transposed: DeviceMatrix::zeroed(cuda, 1, 1, of_up, element)?,
        })
    }

    /// Brings the base of an adapter of a matrix to the device, by their places among those given at the beginning.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the base is of another shape.
    pub fn write_base(&mut self, matrix: usize, adapter: usize, base: RowMajor<'_>) -> Result<(), CudaError> {
        let entry = &self.entries[self.stacks[matrix].entries.clone()][adapter];
        assert_eq!([base.rows, base.cols], [entry.rows as usize, entry.cols as usize], "shape of the base");
        let count = base.rows * base.cols;
        if entry.base_rounded != 0 {
            let at = (entry.base - self.rounded.address(0)) as usize / size_of::<u16>();
            assert_eq!(base.stored, Stored::Bf16, "a base that is kept in bf16");
            let bytes = &base.data[..2 * count];
            if let Ok(values) = bytemuck::try_cast_slice(bytes) {
                return self.rounded.write(at, values);
            }
            let values: Vec<u16> =
                bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            return self.rounded.write(at, &values);
        }
        let at = (entry.base - self.exact.address(0)) as usize / size_of::<f32>();
        let values: Vec<f32> = (0..count).map(|i| base.stored.read(base.data, i)).collect();
        self.exact.write(at, &values)
    }

    /// Makes the adapted rows of all matrices anew, `base + scale B A`, from values that hold `A` and `B`. The matrices are
    /// those given at the beginning, in their order.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the matrices are others, or an adapter reaches beyond the values.
    pub fn merge(
        &mut self,
        values: &Buffer<f32>,
        matrices: &mut [&mut DeviceMatrix],
    ) -> Result<(), CudaError> {
        assert_eq!(matrices.len(), self.stacks.len(), "matrices");
        for (stack, matrix) in self.stacks.iter().zip(matrices) {
            let (experts, outputs, k) = (matrix.experts(), matrix.outputs(), matrix.k());
            let shape = [stack.up.experts(), stack.up.outputs(), stack.down.k()];
            assert_eq!([experts, outputs, k], shape, "shape of a matrix");
            assert_eq!(matrix.element(), stack.up.element(), "element of a matrix");
            assert!(!stack.gated || outputs.is_multiple_of(2 * GATE_GROUP), "gates and ups in whole groups");
            for (entry, expert) in self.entries[stack.entries.clone()].iter_mut().zip(&stack.experts) {
                entry.merged = matrix.data_mut().address(expert * outputs * k);
                let ends =
                    [entry.a as usize + self.rank * k, entry.b as usize + self.rank * entry.rows as usize];
                assert!(ends.iter().all(|end| *end <= values.len()), "an adapter beyond the values");
            }
        }
        if self.sent != self.entries {
            self.table.write(0, &self.entries)?;
            self.sent.clone_from(&self.entries);
        }
        let arguments = [
            Argument::Pointer(self.table.address(0)),
            Argument::I32(self.entries.len() as i32),
            Argument::Pointer(values.address(0)),
            Argument::I32(self.rank as i32),
            Argument::F32(self.scale),
        ];
        // SAFETY: the kernel's arguments, for the element of the matrices. Adapters lie within the values, and their rows
        // within base, matrices and stacks, as was checked here and in `new`.
        unsafe { self.cuda.launch(&self.merge, LaunchShape::new(self.tiles, 256), &arguments) }
    }

    /// Adds the gradients of a matrix's adapters to `sums`, which are places of values as in [`AdaptersCuda::merge`] and
    /// count as zeros where they are `fresh`. The adapters are those that were merged last.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn accumulate(
        &mut self,
        matrix: usize,
        step: &Step<'_>,
        products: &Products,
        gradients: &mut ProductGradients,
        sums: &mut Buffer<f32>,
        fresh: bool,
    ) -> Result<(), CudaError> {
        let Stack { down, up, gated, entries, .. } = &self.stacks[matrix];
        let Step { dy, x, rows } = *step;
        let (width, outputs, k) = (up.k(), up.outputs(), down.k());
        assert_eq!([dy.k(), x.k()], [outputs, k], "widths of the rows");
        products.run(down, x, rows, Output::Rounded(&mut self.inner))?;
        let output = Output::Rounded(&mut self.dinner);
        gradients.inputs(products, up, dy, rows, output, &mut self.transposed)?;
        let down_at = up.experts() * outputs * width;
        let of_up = WeightGradient {
            dy: Columns::all(dy.data(), outputs),
            x: Columns::all(&self.inner, width),
            at: 0,
        };
        let of_down = WeightGradient {
            dy: Columns::all(&self.dinner, width),
            x: Columns::all(x.data(), k),
            at: down_at,
        };
        match rows {
            Rows::All(rows) if !gated => {
                gradients.weights_of_two([of_up, of_down], rows, &mut self.of_stack, true)?;
            }
            _ => {
                for (WeightGradient { dy, x, at }, gated) in [(of_up, *gated), (of_down, false)] {
                    let stride = dy.width * x.width;
                    let place = GradientPlace { gradients: &mut self.of_stack, at, stride, fresh: true };
                    gradients.weights(dy, x, rows, gated, place)?;
                }
            }
        }
        // They are not those of the sums.
        gradients.squares_mut().clear();
        let of_matrix = &self.entries[entries.clone()];
        let values = |entry: &Entry| self.rank * (entry.rows + entry.cols) as usize;
        let most = of_matrix.iter().map(values).max().unwrap_or(0);
        let ends = |entry: &Entry| {
            let [rows, cols] = [entry.rows, entry.cols].map(|side| side as usize * self.rank);
            (entry.a as usize + cols).max(entry.b as usize + rows)
        };
        assert!(of_matrix.iter().all(|entry| ends(entry) <= sums.len()), "room for the gradients");
        let arguments = [
            Argument::Pointer(self.table.address(entries.start)),
            Argument::Pointer(self.of_stack.address(down_at)),
            Argument::Pointer(self.of_stack.address(0)),
            Argument::Pointer(sums.address(0)),
            Argument::I32(self.rank as i32),
            Argument::F32(self.scale),
            Argument::I32(i32::from(fresh)),
        ];
        let shape = LaunchShape::grid(most.div_ceil(COLLECTED), of_matrix.len(), 1, 256).overlap();
        // SAFETY: the kernel's arguments; the table has these entries since adapters were merged, of gradients that were
        // just written and sums that were checked.
        unsafe { self.cuda.launch(&self.collect, shape, &arguments) }
    }

    /// Bytes held: of the base, the stacks and their gradients.
    pub fn bytes(&self) -> usize {
        let stacks: usize = self.stacks.iter().map(|stack| stack.down.bytes() + stack.up.bytes()).sum();
        stacks
            + self.exact.bytes()
            + self.rounded.bytes()
            + self.table.bytes()
            + self.inner.bytes()
            + self.dinner.bytes()
            + self.of_stack.bytes()
            + self.transposed.bytes()
    }
}
