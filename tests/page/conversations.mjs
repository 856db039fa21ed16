// Conversations that no small model would have, to look at and to be attacked by.

const step = (fields) => ({ thinking: "", thinkingTokens: 0, thinkingSeconds: 0, content: "", calls: [], ...fields });
const answer = (steps, fields) => ({ role: "assistant", steps, state: "done", problem: "", finish: "stop", figures: "412 tokens · 38/s", ...fields });

const QUADRATIC = String.raw`For $ax^2 + bx + c = 0$ with $a \neq 0$, divide by $a$ and **complete the square**:

\[
\left(x + \frac{b}{2a}\right)^2 = \frac{b^2 - 4ac}{4a^2}
\]

Both roots follow, since \(\sqrt{4a^2} = 2|a|\):

$$x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$$

## What the discriminant says

| Sign of \(D = b^2 - 4ac\) | Roots | Example |
|:--|:-:|--:|
| positive | two real ones | $x^2 - 3x + 2$ |
| zero | one, twice | $x^2 - 2x + 1$ |
| negative | two complex ones | $x^2 + 1$ |

1. Compute $D$ first.
2. If $D < 0$, the roots are *conjugate*.
   - Their sum is $-\frac{b}{a}$, and their product $\frac{c}{a}$.
   - This is [Vieta's theorem](https://en.wikipedia.org/wiki/Vieta%27s_formulas).

In code, avoid subtracting numbers that are nearly equal:

${"```"}rust
fn roots(a: f64, b: f64, c: f64) -> Option<(f64, f64)> {
    let d = b * b - 4.0 * a * c;
    // The sign of b decides which root is computed directly, so that nothing cancels out on the way there.
    (d >= 0.0).then(|| { let q = -0.5 * (b + b.signum() * d.sqrt()); (q / a, c / q) })
}
${"```"}

> A matrix shows the same thing: the roots are the eigenvalues of its companion.

$$\begin{pmatrix} 0 & -\frac{c}{a} \\ 1 & -\frac{b}{a} \end{pmatrix}, \qquad
f(x) = \begin{cases} x^2 & x \ge 0 \\ -x & x < 0 \end{cases}, \qquad \sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6}$$

A system stays aligned:

$$\begin{align} 2x + 3y &= 8 \\ x - y &= -1 \end{align}$$
`;

export const RICH = [
  { role: "user", text: "How do I solve a quadratic equation, and what does the discriminant say?" },
  answer([step({ thinking: "The user asks about quadratics. I should derive the formula by completing the square, then explain the discriminant.", thinkingTokens: 214, thinkingSeconds: 6.2, content: QUADRATIC })]),
  { role: "user", text: "Then solve x² − 12x + 35 = 0, and check the larger root with a calculator." },
  answer([
    step({ thinking: "Factors of 35 that add up to 12: 5 and 7.", thinkingTokens: 38, thinkingSeconds: 1.4, calls: [{ id: "c1", name: "calculator", arguments: '{"expression": "7^2 - 12*7 + 35"}', result: "0", failed: false }, { id: "c2", name: "calculator", arguments: '{"expression": "7 over 5"}', result: "cannot read “over” at 2", failed: true }] }),
    step({ content: "The roots are $x = 5$ and $x = 7$. The calculator gives $7^2 - 12 \\cdot 7 + 35 = 0$, so the larger one is right." }),
  ], { figures: "126 tokens · 41/s" }),
];

// An answer on its way.
export const RUNNING = [
  { role: "user", text: "Is 2027 prime?" },
  answer([
    step({ thinking: "I can divide by hand, or ask the calculator.", thinkingTokens: 12, thinkingSeconds: 2.1, calls: [{ id: "c", name: "calculator", arguments: '{"expression": "2027 % 43"}', result: "6", failed: false }] }),
    step({ thinking: "The square root of 2027 is about 45.02, so primes up to 43 are enough.\n2: odd. 3: 2 + 0 + 2 + 7 = 11, no. 5: no. 7: 7 · 289 = 2023, rest 4. 11: 11 · 184 = 2024, rest 3.", thinkingTokens: 812, thinkingSeconds: 21 }),
  ], { state: "running", figures: "" }),
];

const ATTACKS = [
  "<script>window.pwned = 1</script>", "<img src=x onerror='window.pwned = 1'>", "<svg onload='window.pwned = 1'>",
  "[a](javascript:window.pwned=1)", "![a](https://example.com/track.png)", "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
  "$\\text{<img src=x onerror=window.pwned=1>}$", "<style>* { display: none }</style>", "```\"><script>window.pwned=1</script>\nx\n```",
  "<math><mtext></mtext><mglyph><style><img src=x onerror='window.pwned=1'></style></mglyph></math>", "<form action=//example.com><input></form>",
];

export const HOSTILE = [
  { role: "user", text: "<img src=x onerror='window.pwned = 1'>" },
  answer([step({ thinking: "<script>window.pwned = 1</script>", thinkingTokens: 3, content: ATTACKS.join("\n\n"), calls: [{ id: "c", name: "<img src=x onerror='window.pwned=1'>", arguments: "<b>", result: "<script>window.pwned=1</script>", failed: false }] })]),
];
