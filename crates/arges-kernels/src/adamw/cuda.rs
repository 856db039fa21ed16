//! AdamW on a GPU (`adamw.cu`): the arithmetic of the CPU's, on flat arrays in the memory of the device. New values are
//! written twice, as they are and as weights of a model ([`Weights`]), so that nothing reads them for that once more.

mod weights;

use std::ops::Range;
use std::sync::Arc;

use super::AdamW;
use super::cpu::{Factors, V_SCALE};
use crate::device::cuda::{Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source};
use crate::matmul::cuda::WrittenSquares;
pub use weights::{Part, Weights};
use weights::{SPAN, Segment, Table, count_pieces};

/// The kernels.
pub const SOURCE: Source = Source { name: "adamw/adamw.cu", text: include_str!("adamw.cu") };

/// What the kernels are compiled for.
pub const DEFINES: [Define; 1] = [("SPAN", SPAN as i64)];

/// The compiled kernels.
pub struct AdamWCuda {
    cuda: Arc<Cuda>,
    adamw: Kernel,
    pack: Kernel,
    squares: Kernel,
    total: Kernel,
    /// What the values become.
    table: Table,
    /// Values whose squares nobody else knows.
    others: Table,
    parts: Buffer<f64>,
    sum: Buffer<f64>,
}

/// Values that learn and what AdamW keeps of them, all of one length.
pub struct Learned<'a> {
    /// The values.
    pub values: &'a mut Buffer<f32>,
    /// Their gradients.
    pub gradients: &'a Buffer<f32>,
    /// First moments; zeros at the beginning.
    pub m: &'a mut Buffer<f32>,
    /// Second moments in the form of [`adamw`](super::adamw); zeros at the beginning.
    pub v: &'a mut Buffer<f32>,
}

impl AdamWCuda {
    /// Compiles them.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &DEFINES);
        Ok(Self {
            cuda: Arc::clone(cuda),
            adamw: module.kernel("adamw")?,
            pack: module.kernel("pack")?,
            squares: module.kernel("squares")?,
            total: module.kernel("total")?,
            table: Table::new(cuda)?,
            others: Table::new(cuda)?,
            parts: Buffer::zeroed(cuda, 0)?,
            sum: Buffer::zeroed(cuda, 1)?,
        })
    }

    /// One step for ranges of values, each with its settings, as [`adamw`](super::adamw) does it on the CPU. The new
    /// values are brought into the weights that they become.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When sizes differ, a step is 0, or a value of a range becomes no weight, or two.
    pub fn step(
        &mut self,
        gradient_scale: f32,
        groups: &[(Range<usize>, AdamW)],
        learned: &mut Learned<'_>,
        weights: &Weights<'_>,
    ) -> Result<(), CudaError> {
        let Learned { values, gradients, m, v } = learned;
        let len = values.len();
        assert_eq!([gradients.len(), m.len(), v.len()], [len; 3]);
        let segments = weights.in_order(len);
        // One launch for all ranges with the same settings: those of norms alone are many.
        let mut alike: Vec<(AdamW, Vec<Segment>)> = Vec::new();
        for (range, settings) in groups {
            assert!(range.start <= range.end && range.end <= len, "values {range:?} of {len}");
            let first = segments.partition_point(|segment| segment.end() <= range.start as i64);
            let behind = segments.partition_point(|segment| segment.begin < range.end as i64);
            let of_range = segments.get(first..behind).unwrap_or_default();
            let of_range = of_range.iter().map(|segment| segment.within(range));
            let covered: i64 = of_range.clone().map(|segment| segment.count).sum();
            assert_eq!(covered, range.len() as i64, "values of {range:?} that become weights");
            match alike.iter_mut().find(|(other, _)| other == settings) {
                Some((_, segments)) => segments.extend(of_range),
                None => alike.push((*settings, of_range.collect())),
            }
        }
        let mut all: Vec<Segment> = alike.iter().flat_map(|(_, segments)| segments).copied().collect();
        count_pieces(&mut all);
        self.table.send(&all)?;
        let mut first = 0;
        for (settings, segments) in alike {
            let f = Factors::new(settings, gradient_scale);
            let arguments = [
                Argument::Pointer(values.address(0)),
                Argument::Pointer(gradients.address(0)),
                Argument::Pointer(m.address(0)),
                Argument::Pointer(v.address(0)),
                Argument::F32(f.gradient),
                Argument::F32(f.beta1),
                Argument::F32(f.rest1),
                Argument::F32(f.beta2),
                Argument::F32(f.rest2),
                Argument::F32(f.rate),
                Argument::F32(f.root),
                Argument::F32(f.eps),
                Argument::F32(f.decay),
                Argument::F32(V_SCALE.sqrt()),
            ];
            let of_settings = first..first + segments.len();
            first = of_settings.end;
            // SAFETY: the kernel's arguments behind the segments'; those lie within all four.
            unsafe { self.launch(&self.adamw, &all, of_settings, &arguments)? };
        }
        Ok(())
    }

    /// Brings all values that become weights into those.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there are fewer values, or one becomes two weights.
    pub fn pack(&mut self, values: &Buffer<f32>, weights: &Weights<'_>) -> Result<(), CudaError> {
        let segments = weights.in_order(values.len());
        if segments.is_empty() {
            return Ok(());
        }
        self.table.send(&segments)?;
        // SAFETY: the kernel's argument behind the segments'; they lie within the values.
        unsafe {
            self.launch(&self.pack, &segments, 0..segments.len(), &[Argument::Pointer(values.address(0))])
        }
    }

    /// Runs a kernel on some of the table's segments, with arguments behind those that say so.
    ///
    /// # Safety
    /// They are the kernel's, which may read and write the values of the segments; all segments are those of the table.
    unsafe fn launch(
        &self,
        kernel: &Kernel,
        all: &[Segment],
        some: Range<usize>,
        arguments: &[Argument<'_>],
    ) -> Result<(), CudaError> {
        let segments = &all[some.clone()];
        let (Some(head), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let mut with_segments = vec![
            Argument::Pointer(self.table.on_device.address(some.start)),
            Argument::I32(segments.len() as i32),
        ];
        with_segments.extend_from_slice(arguments);
        let shape = LaunchShape::new((last.last_piece() - head.first_piece) as usize, 256);
        // SAFETY: the arguments, in order. Weights are written that `Weights` has checked and still borrows.
        unsafe { self.cuda.launch(kernel, shape, &with_segments) }
    }

    /// Sum of squares, in a fixed order: of the gradients that products have written as they say, and in f64 of the
    /// others. Waits for the device.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    pub fn sum_of_squares(&mut self, x: &Buffer<f32>, written: &[&WrittenSquares]) -> Result<f64, CudaError> {
        let mut segments = others(x.len(), written.iter().flat_map(|written| written.values()));
        let mut count = count_pieces(&mut segments);
        let room = count + written.iter().map(|written| written.parts().1).sum::<usize>();
        if self.parts.len() < room {
            self.parts = Buffer::zeroed(&self.cuda, room)?;
        }
        self.others.send(&segments)?;
        let arguments = [
            Argument::Pointer(self.others.on_device.address(0)),
            Argument::I32(segments.len() as i32),
            Argument::Pointer(x.address(0)),
            Argument::Pointer(self.parts.address(0)),
        ];
        // SAFETY: the kernel's arguments; segments are values of `x`, and there is a part for each block.
        unsafe { self.cuda.launch(&self.squares, LaunchShape::new(count, 256), &arguments)? };
        for (parts, used) in written.iter().map(|written| written.parts()).filter(|(_, used)| *used > 0) {
            self.parts.copy_from(count, parts, 0, used)?;
            count += used;
        }
        let arguments = [
            Argument::Pointer(self.parts.address(0)),
            Argument::Pointer(self.sum.address(0)),
            Argument::I32(count as i32),
        ];
        // SAFETY: the kernel's arguments; `count` parts were just written.
        unsafe { self.cuda.launch(&self.total, LaunchShape::new(1, 256), &arguments)? };
        let mut sum = [0.0];
        self.sum.read(0, &mut sum)?;
        Ok(sum[0])
    }
}

/// Of so many values those outside of some ranges, which do not overlap.
fn others(len: usize, ranges: impl Iterator<Item = Range<usize>>) -> Vec<Segment> {
    let mut ranges: Vec<Range<usize>> = ranges.collect();
    ranges.sort_by_key(|range| range.start);
    let begins = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain([len]);
    let between = begins.zip(ends).filter(|(begin, end)| begin < end);
    between.map(|(begin, end)| Segment::of_values(begin..end)).collect()
}
