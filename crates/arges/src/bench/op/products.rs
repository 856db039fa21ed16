//! The products of a layer and of the head of a model, alone: forward, and with `--backward` by inputs and by weights.

use anyhow::Result;
use arges_kernels::device::cuda::{Activations, Buffer};
use arges_kernels::matmul::Element;
use arges_kernels::matmul::cuda::{
    Columns, DeviceMatrix, DeviceRows, GradientPlace, Output, PARTS, ProductGradients, Products, Rows,
};
use arges_model::Config;
use serde_json::{Value, json};

use super::Bench;

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Epilogue {
    Rounded,
    /// The first so many outputs through SiLU, with the product itself.
    Activated(usize),
    /// With the product itself.
    Gated,
    /// In f32, of rows in parts.
    Parts,
}

#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    rows: usize,
    outputs: usize,
    k: usize,
    experts: usize,
    epilogue: Epilogue,
}

impl Product {
    fn of(config: &Config, tokens: usize) -> [Self; 5] {
        let Config { hidden_size: hidden, intermediate_size: inner, num_experts: experts, .. } = *config;
        let (width, rows) = (config.query_width(), tokens * config.experts_per_token);
        let one = |name, outputs, k, epilogue| Self { name, rows: tokens, outputs, k, experts: 1, epilogue };
        let each = |name, outputs, k, epilogue| Self { name, rows, outputs, k, experts, epilogue };
        [
            one("projections", 4 * width, hidden, Epilogue::Activated(3 * width)),
            one("out", hidden, width, Epilogue::Rounded),
            each("gate_up", 2 * inner, hidden, Epilogue::Gated),
            each("down", hidden, inner, Epilogue::Rounded),
            one("head", config.vocab_size, hidden, Epilogue::Parts),
        ]
    }

    /// Ends of the experts' rows: as many for each, but for some.
    fn offsets(&self) -> Vec<i32> {
        let even = |expert: usize| expert * self.rows / self.experts;
        let shift = |expert: usize| expert * 53 % 97 * self.rows / self.experts / 1000;
        let inside = |expert: usize| expert > 0 && expert < self.experts;
        (0..=self.experts).map(|e| (even(e) + if inside(e) { shift(e) } else { 0 }) as i32).collect()
    }

    fn flops(&self) -> f64 {
        2.0 * (self.rows * self.outputs * self.k) as f64
    }

    /// Bytes of the operands and the matrix, in bf16.
    fn bytes(&self, results: usize) -> f64 {
        let values = self.rows * (self.outputs + self.k) + self.experts * self.outputs * self.k;
        (2 * values + results) as f64
    }
}

impl Bench {
    /// A case for every product of `tokens` tokens.
    pub(super) fn products(&self, config: &Config, tokens: usize, backward: bool) -> Result<Vec<Value>> {
        let products = Products::new(&self.cuda)?;
        let mut cases = Vec::new();
        for product in Product::of(config, tokens) {
            let offsets = Buffer::from_slice(&self.cuda, &product.offsets())?;
            let rows = match product.experts {
                1 => Rows::All(product.rows),
                _ => Rows::Grouped { offsets: &offsets, most: product.rows },
            };
            let Product { outputs, k, experts, .. } = product;
            let mut matrix = DeviceMatrix::zeroed(&self.cuda, experts, outputs, k, Element::Bf16)?;
            self.fill.normal(matrix.data_mut(), 1, (k as f32).powf(-0.5))?;
            cases.push(self.product(product, &products, &matrix, rows)?);
            if backward {
                cases.extend(self.product_gradients(product, &products, &matrix, rows)?);
            }
        }
        Ok(cases)
    }

    fn rows(&self, rows: usize, k: usize) -> Result<DeviceRows> {
        let mut values = DeviceRows::zeroed(&self.cuda, rows, k, Element::Bf16)?;
        self.fill.normal(values.data_mut(), 2, 1.0)?;
        Ok(values)
    }

    fn bf16(&self, len: usize) -> Result<Activations> {
        Ok(Activations::zeroed(&self.cuda, Element::Bf16, len)?)
    }

    fn product_case(&self, what: &str, product: &Product, seconds: f64, bytes: f64, flops: f64) -> Value {
        let mut case = self.case(&format!("{}{what}", product.name), product.rows, seconds, bytes, flops);
        case["outputs"] = json!(product.outputs);
        case["k"] = json!(product.k);
        case["flops_per_second"] = json!(flops / seconds);
        case
    }

    fn product(
        &self,
        product: Product,
        products: &Products,
        matrix: &DeviceMatrix,
        rows: Rows<'_>,
    ) -> Result<Value> {
        let Product { rows: count, outputs, k, .. } = product;
        let parts = if product.epilogue == Epilogue::Parts { PARTS } else { 1 };
        let x = self.rows(count.next_multiple_of(8) * parts, k)?;
        let results = count * outputs;
        let (mut out, mut before) = (self.bf16(results)?, self.bf16(results)?);
        let mut exact = Buffer::zeroed(&self.cuda, if parts > 1 { results } else { 0 })?;
        let seconds = self.time(|_| {
            let output = match product.epilogue {
                Epilogue::Parts => return products.run_parts(matrix, &x, count, &mut exact),
                Epilogue::Rounded => Output::Rounded(&mut out),
                Epilogue::Activated(silu) => {
                    Output::Activated { out: &mut out, silu, before: Some(&mut before) }
                }
                Epilogue::Gated => Output::Gated { out: &mut out, before: Some(&mut before) },
            };
            products.run(matrix, &x, rows, output)
        })?;
        let more = match product.epilogue {
            Epilogue::Rounded => 0,
            Epilogue::Activated(_) => 2 * results,
            Epilogue::Gated => results,
            Epilogue::Parts => 2 * results + 2 * count * k,
        };
        let flops = parts as f64 * product.flops();
        Ok(self.product_case("", &product, seconds, product.bytes(more), flops))
    }

    /// By inputs and by weights.
    fn product_gradients(
        &self,
        product: Product,
        products: &Products,
        matrix: &DeviceMatrix,
        rows: Rows<'_>,
    ) -> Result<[Value; 2]> {
        let Product { rows: count, outputs, k, experts, .. } = product;
        let mut gradients = ProductGradients::new(&self.cuda, experts)?;
        let dy = self.rows(count, outputs)?;
        let mut scratch = DeviceMatrix::zeroed(&self.cuda, experts, k, outputs, Element::Bf16)?;
        let mut dx = self.bf16(count * k)?;
        let flops = product.flops();
        let seconds = self.time(|_| {
            gradients.inputs(products, matrix, &dy, rows, Output::Rounded(&mut dx), &mut scratch)
        })?;
        let by_inputs = self.product_case(" by inputs", &product, seconds, product.bytes(0), flops);

        let x = self.rows(count, k)?;
        let mut sums = Buffer::zeroed(&self.cuda, experts * outputs * k)?;
        let gated = product.epilogue == Epilogue::Gated;
        gradients.reserve([outputs, k], count, experts)?;
        let mut run = || {
            let place = GradientPlace { gradients: &mut sums, at: 0, stride: outputs * k, fresh: true };
            let (dy, x) = (Columns::all(dy.data(), outputs), Columns::all(x.data(), k));
            gradients.weights(dy, x, rows, gated, place)
        };
        // The first call may take memory, which a graph does not.
        run()?;
        let seconds = self.time(|_| run())?;
        let bytes = (2 * count * (outputs + k) + 4 * experts * outputs * k) as f64;
        Ok([by_inputs, self.product_case(" by weights", &product, seconds, bytes, flops)])
    }
}
