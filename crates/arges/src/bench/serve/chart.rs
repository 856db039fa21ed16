//! The chart of a report: of one load the whole distributions, of several their percentiles over the load.

use arges_train::plot::{Line, LineChart};

use super::measure::Load;
use super::summary::{Sorted, Summary};

/// The chart of the loads and their figures.
pub fn chart(title: String, cases: &[(Load, Summary)]) -> LineChart {
    let (x_label, lines) = match cases {
        [(_, summary)] => {
            ("percent of requests (of gaps, for inter-token latency)".to_owned(), distributions(summary))
        }
        _ => (load_label(cases), percentiles(cases)),
    };
    LineChart { title, x_label, y_label: "seconds".to_owned(), note: None, log: true, lines }
}

fn load_label(cases: &[(Load, Summary)]) -> String {
    match cases.first() {
        Some((Load::Clients(_), _)) => "clients".to_owned(),
        _ => "requests per second".to_owned(),
    }
}

fn distributions(summary: &Summary) -> Vec<Line> {
    let line = |label: &str, values: &Sorted| {
        let shares = (1..=1000).map(|step| f64::from(step) / 1000.0);
        let points = shares.filter_map(|share| Some((100.0 * share, values.percentile(share)?)));
        Line { label: label.to_owned(), points: points.collect(), has_markers: false }
    };
    vec![
        line("time to first token", &summary.first_token),
        line("inter-token latency", &summary.between_tokens),
        line("end to end", &summary.whole),
    ]
}

fn percentiles(cases: &[(Load, Summary)]) -> Vec<Line> {
    let line = |label: &str, values: fn(&Summary) -> &Sorted, share: f64| {
        let points = cases
            .iter()
            .filter_map(|(load, summary)| Some((place(*load), values(summary).percentile(share)?)));
        let mut points: Vec<(f64, f64)> = points.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { label: label.to_owned(), points, has_markers: true }
    };
    vec![
        line("first token, p50", |summary| &summary.first_token, 0.5),
        line("first token, p99", |summary| &summary.first_token, 0.99),
        line("inter-token, p50", |summary| &summary.between_tokens, 0.5),
        line("inter-token, p99", |summary| &summary.between_tokens, 0.99),
    ]
}

fn place(load: Load) -> f64 {
    match load {
        Load::Rate(rate) => rate,
        Load::Clients(clients) => clients as f64,
    }
}
