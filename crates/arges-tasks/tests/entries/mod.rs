//! What the fuzz targets and the randomised tests feed with bytes.

use std::sync::LazyLock;

use arges_tasks::{Instance, Task};

/// Grades bytes as a response; what follows a zero byte is the expected answer.
pub fn grade(data: &[u8]) {
    let split = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (response, expected) = (text(&data[..split]), text(&data[(split + 1).min(data.len())..]));
    let grade = arges_tasks::math::grade(&response, &expected);
    assert_eq!(arges_tasks::math::grade(&response, &expected), grade);
    arges_tasks::math::grade(&expected, &response);
}

/// Verifies bytes as a response to an instance of a task; the first two bytes choose task and difficulty.
pub fn verify(data: &[u8]) {
    let [task, difficulty, response @ ..] = data else { return };
    let (task, instance) = chosen([*task, *difficulty]);
    let verdict = task.verify(instance, &text(response));
    assert!((0.0..=1.0).contains(&verdict.reward) && !verdict.reason.is_empty());
}

/// The instance that two bytes choose, and its task.
pub fn chosen([task, difficulty]: [u8; 2]) -> (&'static dyn Task, &'static Instance) {
    // Made once, since a fuzzer runs a target thousands of times a second.
    static INSTANCES: LazyLock<Vec<Vec<Instance>>> = LazyLock::new(|| {
        let instances = |task: &&dyn Task| (1..=task.max_difficulty()).map(|d| task.generate(0, d)).collect();
        arges_tasks::all().iter().map(instances).collect()
    });
    let task = usize::from(task) % INSTANCES.len();
    let instances = &INSTANCES[task];
    (arges_tasks::all()[task], &instances[usize::from(difficulty) % instances.len()])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
