use super::cuda::*;
use super::reference::{gated_rms_norm_backward, rms_norm, rms_norm_backward};
use crate::device::cuda::{Activations, Buffer};
use crate::matmul::Element;
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

const EPSILON: f32 = 1e-5;

fn shape(rows: usize, width: usize, experts: usize) -> StreamShape {
    StreamShape { rows, width, gated: width, choices: 2, experts }
}

#[test]
fn a_block_is_left_backwards_through_its_norm_and_past_it() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(21);
    let formats = [(Element::F32, 1e-5), (Element::Bf16, 6e-3)];
    // One has too many experts for the router's gradient to be summed on the way.
    let shapes = [(1, 8, 3), (3, 64, 3), (33, 100, 8), (70, 2048, 3), (530, 72, 20), (19, 6144, 3)];
    for ((element, tolerance), (rows, width, experts)) in
        formats.into_iter().flat_map(|format| shapes.map(|shape| (format, shape)))
    {
        let round = |x: Vec<f32>| if element == Element::Bf16 { bf16_round(&x) } else { x };
        let [x, dx, product, choice_rows] = std::array::from_fn(|i| {
            round(random.normal(if i == 3 { 2 * rows * width } else { rows * width }))
        });
        let more = random.normal(rows * width);
        let (weight, column, factors) = (random.normal(width), random.normal(width), random.normal(rows));
        let mut places: Vec<i32> = (0..2 * rows as i32).rev().collect();
        places[0] = -1;
        let before = random.normal((1 + experts) * width + 4);
        let device = |values: &[f32]| Buffer::from_slice(&cuda, values).unwrap();
        let rounded = |values: &[f32]| Activations::from_f32(&cuda, element, values).unwrap();
        let (d_x, d_product, d_choices, d_more) =
            (rounded(&x), rounded(&product), rounded(&choice_rows), device(&more));
        let mut scaled = Activations::zeroed(&cuda, element, rows * width).unwrap();
        let (d_weight, d_column, d_factors) = (device(&weight), device(&column), device(&factors));
        let (small, of_small) = (random.normal(experts * width), random.normal(experts * rows));
        let (d_small, d_of_small) = (device(&small), device(&of_small));
        let d_places = Buffer::from_slice(&cuda, &places).unwrap();
        let choice_weights = random.normal(2 * rows);
        let d_choice_weights = device(&choice_weights);
        let mut kernels = StreamGradients::new(&cuda, element, shape(rows, width, experts)).unwrap();
        assert_eq!(kernels.sums_router(), experts <= 8, "{width}");
        for past in [Past::Stream(0.7), Past::Normed(1.3), Past::Nothing] {
            let gradient = NormedGradient {
                branch: BranchGradient::Choices(&d_choices, &d_places),
                more: Some(&d_product),
                exact: Some(&d_more),
                outer: [Some((&d_of_small, &d_small)), Some((&d_factors, &d_column))],
            };
            let outer_at = kernels.sums_router().then_some(4 + width);
            let mut run = |x: &Activations, gradient, outer_at| {
                let (mut d_dx, mut sums) = (rounded(&dx), device(&before));
                let step = NormBackward {
                    x,
                    rows,
                    norm: Norm { weight: &d_weight, epsilon: EPSILON },
                    past,
                    gradient,
                    dx: &mut d_dx,
                    scaled: Some((0.5, &mut scaled)),
                    weighed: None,
                    sums: NormSums { gradients: &mut sums, weight_at: 4, outer_at, fresh: false },
                };
                kernels.norm_backward(step).unwrap();
                (d_dx.to_f32().unwrap(), scaled.to_f32().unwrap(), sums.to_vec().unwrap())
            };
            let (got, halves, sums) = run(&d_x, gradient, outer_at);
            let (mut expected, mut dweight) = (Vec::new(), widen(&before[4..]));
            let mut size = vec![0.0f64; rows];
            for t in 0..rows {
                let dy: Vec<f64> = (0..width)
                    .map(|i| {
                        let at = t * width + i;
                        let of_choice = |c: usize| match places[2 * t + c] {
                            place if place < 0 => 0.0,
                            place => f64::from(choice_rows[place as usize * width + i]),
                        };
                        let of_experts =
                            |e: usize| f64::from(of_small[experts * t + e]) * f64::from(small[e * width + i]);
                        let normed = if let Past::Normed(alpha) = past { alpha * dx[at] } else { 0.0 };
                        f64::from(normed)
                            + f64::from(product[at])
                            + f64::from(more[at])
                            + of_choice(0)
                            + of_choice(1)
                            + f64::from(factors[t]) * f64::from(column[i])
                            + (0..experts).map(of_experts).sum::<f64>()
                    })
                    .collect();
                let row = widen(&x[t * width..][..width]);
                let (d, dw) = rms_norm_backward(&row, &widen(&weight), f64::from(EPSILON), &dy);
                let alpha = if let Past::Stream(alpha) = past { alpha } else { 0.0 };
                expected.extend(d.iter().zip(&dx[t * width..]).map(|(d, x)| d + f64::from(alpha * x)));
                size[t] = expected[t * width..].iter().map(|d| d.abs()).fold(0.0, f64::max);
                dweight.iter_mut().zip(dw).for_each(|(sum, d)| *sum += d);
                if outer_at.is_some() {
                    let normed = rms_norm(&row, &widen(&weight), f64::from(EPSILON));
                    for (e, sums) in dweight[width..].chunks_mut(width).enumerate() {
                        let factor = f64::from(of_small[experts * t + e]);
                        sums.iter_mut().zip(&normed).for_each(|(sum, normed)| *sum += factor * normed);
                    }
                }
            }
            let what = format!("{element:?} {rows} {width} {past:?}");
            assert_close(&got, &expected, tolerance, &what);
            for (i, (half, x)) in halves.iter().zip(&got).enumerate() {
                let away = f64::from(*half) - f64::from(0.5 * x);
                assert!(away.abs() <= tolerance * size[i / width], "{what}: {half} is not half of {x}");
            }
            assert_close(&sums[4..], &dweight, 1e-5, &what);
            assert_eq!(sums[..4], before[..4], "{what}");
            // The same bits where the stream was kept in f32, which is not rounded yet.
            let near: Vec<f32> = x.iter().map(|x| x * (1.0 + 1e-4)).collect();
            let exact = Activations::from_f32(&cuda, Element::F32, &near).unwrap();
            let same = run(&exact, gradient, outer_at) == run(&rounded(&near), gradient, outer_at);
            assert!(same, "{what}: other bits from f32");
            // Rows of a product instead of those of choices, alone.
            let product = NormedGradient::from(BranchGradient::Rows(&d_product));
            let whole = Activations::from_f32(&cuda, element, &vec![0.0; 2 * rows * width]).unwrap();
            let nothing = BranchGradient::Choices(&whole, &d_places);
            let more = NormedGradient { more: Some(&d_product), ..NormedGradient::from(nothing) };
            let of_product = run(&d_x, product, None);
            assert!(of_product == run(&d_x, more, None), "{what}: a product");
            // The same once more over what was there, with the gradient weighed for the experts of the block before.
            for with_shared in [false, true] {
                let (mut d_dx, mut sums) = (rounded(&dx), device(&vec![f32::NAN; before.len()]));
                let mut weighed = rounded(&vec![9.0; 2 * rows * width]);
                let mut of_shared = rounded(&vec![9.0; rows * width]);
                let step = NormBackward {
                    x: &d_x,
                    rows,
                    norm: Norm { weight: &d_weight, epsilon: EPSILON },
                    past,
                    gradient: product,
                    dx: &mut d_dx,
                    scaled: with_shared.then_some((0.5, &mut scaled)),
                    weighed: Some(Weighed {
                        places: &d_places,
                        weights: &d_choice_weights,
                        out: &mut weighed,
                        shared: with_shared.then_some((&d_factors, &mut of_shared)),
                    }),
                    sums: NormSums { gradients: &mut sums, weight_at: 4, outer_at: None, fresh: true },
                };
                kernels.norm_backward(step).unwrap();
                assert!(d_dx.to_f32().unwrap() == of_product.0, "{what}: other bits beside weighed rows");
                let sums = sums.to_vec().unwrap();
                let expected = of_product.2[4..4 + width].iter().zip(&before[4..]).map(|(sum, x)| sum - x);
                let expected: Vec<f64> = expected.map(f64::from).collect();
                assert_close(&sums[4..4 + width], &expected, 1e-5, &what);
                assert!(sums[..4].iter().chain(&sums[4 + width..]).all(|x| x.is_nan()), "{what}");
                let out = if with_shared { &of_product.1 } else { &of_product.0 };
                let mut expected = vec![9.0; 2 * rows * width];
                let mut expected_shared = vec![9.0; rows * width];
                for t in 0..rows {
                    let c = if with_shared { 1.0 / (1.0 + f64::from(-factors[t]).exp()) } else { 0.0 };
                    for i in 0..width {
                        let x = f64::from(out[t * width + i]);
                        for choice in 2 * t..2 * t + 2 {
                            if let Ok(place) = usize::try_from(places[choice]) {
                                expected[place * width + i] =
                                    x * f64::from(choice_weights[choice]) * (1.0 - c);
                            }
                        }
                        if with_shared {
                            expected_shared[t * width + i] = x * c;
                        }
                    }
                }
                assert_close(&weighed.to_f32().unwrap(), &expected, tolerance, &what);
                assert_close(&of_shared.to_f32().unwrap(), &expected_shared, tolerance, &what);
            }
        }
    }
}

#[test]
fn gated_norms_give_the_gradients_of_the_reference() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(22);
    for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 4e-3)] {
        let round = |x: Vec<f32>| if element == Element::Bf16 { bf16_round(&x) } else { x };
        for (rows, width) in [(1, 8), (17, 96), (40, 4096)] {
            let (first, stride) = (3 * width, 4 * width);
            let (x, dy) = (round(random.normal(rows * width)), round(random.normal(rows * width)));
            let open: Vec<f32> =
                round((0..rows * stride).map(|_| random.uniform() as f32 * 0.9 + 0.05).collect());
            let weight = random.normal(width);
            let [d_x, d_gate] = [&x, &open].map(|v| Activations::from_f32(&cuda, element, v).unwrap());
            let d_weight = Buffer::from_slice(&cuda, &weight).unwrap();
            let d_dy = Activations::from_f32(&cuda, element, &dy).unwrap();
            let mut dx = Activations::zeroed(&cuda, element, rows * width).unwrap();
            let mut dgate = Activations::zeroed(&cuda, element, rows * stride).unwrap();
            let mut dweight = Buffer::zeroed(&cuda, width).unwrap();
            let mut kernels = StreamGradients::new(&cuda, element, shape(rows, width, 0)).unwrap();
            let norm = Norm { weight: &d_weight, epsilon: EPSILON };
            let gate = (&d_gate, first, stride);
            let sums = NormSums { gradients: &mut dweight, weight_at: 0, outer_at: None, fresh: false };
            kernels.gated_norm_backward(&d_x, rows, gate, norm, &d_dy, &mut dx, &mut dgate, sums).unwrap();
            let (mut e_dx, mut e_dgate, mut e_weight) = (Vec::new(), Vec::new(), vec![0.0; width]);
            for t in 0..rows {
                let gates: Vec<f64> = (0..width)
                    .map(|i| f64::from(open[t * stride + first + i]))
                    .map(|open| (open / (1.0 - open)).ln())
                    .collect();
                let [x, dy] = [&x, &dy].map(|v| widen(&v[t * width..][..width]));
                let (d, g, w) = gated_rms_norm_backward(&x, &gates, &widen(&weight), f64::from(EPSILON), &dy);
                e_dx.extend(d);
                e_dgate.extend(g);
                e_weight.iter_mut().zip(w).for_each(|(sum, w)| *sum += w);
            }
            let what = format!("{rows} {width} {element:?}");
            assert_close(&dx.to_f32().unwrap(), &e_dx, tolerance, &what);
            let got = dgate.to_f32().unwrap();
            let got: Vec<f32> = got.chunks(stride).flat_map(|row| row[first..].to_vec()).collect();
            assert_close(&got, &e_dgate, tolerance, &what);
            assert_close(&dweight.to_vec().unwrap(), &e_weight, 1e-5, &what);
        }
    }
}

#[test]
fn rows_are_scaled_gathered_and_scattered() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(23);
    let (rows, width) = (9, 24);
    let x = random.normal(rows * width);
    let kernels = StreamGradients::new(&cuda, Element::F32, shape(rows, width, 0)).unwrap();
    let rounded = Activations::from_f32(&cuda, Element::F32, &x).unwrap();
    let mut out = Activations::zeroed(&cuda, Element::F32, rows * width).unwrap();
    kernels.scaled(&rounded, rows * width, 0.5, &mut out).unwrap();
    assert!(out.to_f32().unwrap().iter().zip(&x).all(|(half, x)| *half == 0.5 * x));
    let chosen = [7, 0, 3];
    let [mut picked, mut back] =
        [3, rows].map(|rows| Activations::zeroed(&cuda, Element::F32, rows * width).unwrap());
    let indices = Buffer::from_slice(&cuda, &chosen).unwrap();
    let device = Buffer::from_slice(&cuda, &x).unwrap();
    kernels.gather_rows(&device, &indices, 3, width, &mut picked).unwrap();
    kernels.scatter_rows(&picked, &indices, 3, width, &mut back).unwrap();
    for (t, row) in back.to_f32().unwrap().chunks(width).enumerate() {
        let of_x = &x[t * width..][..width];
        assert!(if chosen.contains(&(t as i32)) { row == of_x } else { row.iter().all(|x| *x == 0.0) });
    }
}

#[test]
fn gradients_of_a_token_are_summed_over_its_rows() {
    let Some(cuda) = gpu() else { return };
    let (width, batch) = (12, [2usize, 0, 2, 3, 2]);
    let dx = Random::new(24).normal(batch.len() * width);
    let table: Vec<f32> = Random::new(25).normal(4 * width);
    let [tokens, begins, order] = [vec![0, 2, 3], vec![0, 1, 4, 5], vec![1, 0, 2, 4, 3]]
        .map(|values: Vec<i32>| Buffer::from_slice(&cuda, &values).unwrap());
    let mut sums = Buffer::from_slice(&cuda, &table).unwrap();
    let kernels = StreamGradients::new(&cuda, Element::F32, shape(5, width, 0)).unwrap();
    let device = Activations::from_f32(&cuda, Element::F32, &dx).unwrap();
    kernels.embedding_backward(&device, &tokens, &begins, &order, 3, width, &mut sums).unwrap();
    for (i, got) in sums.to_vec().unwrap().into_iter().enumerate() {
        let mut expected = table[i];
        for row in (0..batch.len()).filter(|row| batch[*row] == i / width) {
            expected += dx[row * width + i % width];
        }
        assert_eq!(got, expected);
    }
}

#[test]
fn gradient_kernels_compile_for_every_architecture() {
    for element in [Element::F32, Element::Bf16] {
        for shape in [shape(16, 1536, 8), shape(16, 100, 2)] {
            assert_compiles(GRADIENTS, &shape.defines(element), &CARDS);
        }
    }
}
