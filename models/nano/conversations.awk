# Conversations in which tools are used, one a line: with the built-in calculator and clock, and, of the solved calls on
# standard input (`arges tasks generate tool_call --solved`), what follows when the tool has answered. Or those of a file,
# several times, with tools that are offered and not needed.
#
#   awk -v seed=1 -v count=20000 -f conversations.awk < SOLVED
#   awk -v seed=1 -v about=about.jsonl -v repeat=8 -f conversations.awk

function pick(list,    words, n) {
    n = split(list, words, "|")
    return words[1 + int(rand() * n)]
}

function number(digits) {
    return int(rand() * 10 ^ (1 + int(rand() * digits)))
}

function call(name, arguments) {
    return "\"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"" name "\", \"arguments\": {" arguments "}}}]"
}

# A question, what is thought of it, the call, its result, the answer.
function conversation(question, thought, name, arguments, result, answer) {
    printf "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}, ", question
    printf "{\"role\": \"assistant\", \"content\": \"\", \"reasoning_content\": \"%s\", %s}, ", thought, call(name, arguments)
    printf "{\"role\": \"tool\", \"name\": \"%s\", \"content\": \"%s\"}, ", name, result
    printf "{\"role\": \"assistant\", \"content\": \"%s\"}], \"tools\": [%s]}\n", answer, offered(name)
}

# The tool that is called, and often the other one, too.
function offered(name) {
    if (rand() < 0.5) return tool[name]
    return rand() < 0.5 ? tool["calculator"] ", " tool["clock"] : tool["clock"] ", " tool["calculator"]
}

function calculate(    a, b, c, sign, expression, asked, value) {
    a = number(7); b = number(rand() < 0.5 ? 3 : 7)
    sign = pick("+|-|*|*")
    value = sign == "+" ? a + b : sign == "-" ? a - b : a * b
    expression = a " " sign " " b
    asked = expression
    if (rand() < 0.2) {
        c = number(3)
        if (rand() < 0.5) {
            expression = "(" expression ") * " c
            value = value * c
        } else {
            expression = expression " + " c
            value = value + c
        }
        asked = expression
    } else if (rand() < 0.3) {
        asked = a " " (sign == "+" ? "plus" : sign == "-" ? "minus" : "times") " " b
    }
    value = sprintf("%.0f", value)
    # Above this, awk's numbers are not exact.
    if (value + 0 > 2 ^ 52 || value + 0 < -(2 ^ 52)) { calculate(); return }
    conversation(pick("What is |How much is |Work out |Calculate |Please work out |Use the calculator: |What do I get for |") asked \
        pick("?|?|.|"), "I let the calculator work out " expression ".", "calculator", \
        "\"expression\": \"" expression "\"", value, expression " = " value)
}

function tell_time(    day, date, hour, minute, zone, time, what, asked, arguments) {
    day = pick("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
    date = sprintf("20%02d-%02d-%02d", 24 + int(rand() * 12), 1 + int(rand() * 12), 1 + int(rand() * 28))
    hour = int(rand() * 24); minute = int(rand() * 60)
    zone = sprintf("%s%02d:%s", pick("+|-"), int(rand() * 12), pick("00|00|00|30"))
    time = sprintf("%02d:%02d", hour, minute)
    what = pick("time|day|date")
    if (what == "time") asked = pick("What time is it|How late is it|Tell me the time|What is the time")
    if (what == "day") asked = pick("What day is it|Which day of the week is it|What weekday is today")
    if (what == "date") asked = pick("What is the date|Which date is today|What is today's date")
    arguments = ""
    if (rand() < 0.3) {
        asked = asked pick(" at UTC | at an offset of | where the clock is at UTC") zone
        arguments = "\"utc_offset\": \"" zone "\""
    }
    conversation(asked pick("?|?|"), "The clock tells that.", "clock", arguments, \
        day ", " date " " time ":" sprintf("%02d", int(rand() * 60)) " " zone, \
        "It is " (what == "time" ? time : what == "day" ? day : date) ".")
}

BEGIN {
    srand(seed)
    tool["calculator"] = "{\"name\": \"calculator\", \"description\": \"Works out an arithmetic expression with + - * / ^ % and parentheses, functions such as sqrt, ln, sin, round, min and max, and the constants pi and e. Whole numbers are exact up to 38 digits.\", \"parameters\": {\"type\": \"object\", \"properties\": {\"expression\": {\"type\": \"string\", \"description\": \"The expression, such as (17 + 25) * 3 or sqrt(2) ^ 3\", \"minLength\": 1}}, \"required\": [\"expression\"]}}"
    tool["clock"] = "{\"name\": \"clock\", \"description\": \"Tells the date, the day of the week and the time.\", \"parameters\": {\"type\": \"object\", \"properties\": {\"utc_offset\": {\"type\": [\"string\", \"null\"], \"description\": \"Difference from UTC, such as +02:00; without it the time is that of this machine\"}}}}"
    for (i = 0; i < count; i++) {
        if (rand() < 0.75) calculate(); else tell_time()
    }
    while (about != "" && (getline < about) > 0) {
        for (i = 0; i < repeat; i++) {
            line = $0
            sub(/\}\]\}$/, "}], \"tools\": [" offered(pick("calculator|clock")) "]}", line)
            print line
        }
    }
    if (about != "") exit
}

# What follows a call of any tool: a result, and an answer that tells it.
/"tool_calls"/ {
    match($0, /"function":\{"name":"[^"]*"/)
    name = substr($0, RSTART + 20, RLENGTH - 21)
    kind = pick("done|number|text|json|error")
    n = 1 + number(4)
    if (kind == "done") { result = pick("done|ok|success"); answer = "It is done." }
    if (kind == "number") { result = n; answer = "The result is " n "." }
    if (kind == "text") { result = "The " pick("code|total|price|level") " is " n "."; answer = result }
    if (kind == "json") {
        key = pick("id|number|code|total|count")
        result = "{\\\"" key "\\\": " n ", \\\"ok\\\": true}"; answer = "It is done; the " key " is " n "."
    }
    if (kind == "error") {
        why = pick("not found|not allowed|timed out|out of service|unknown")
        result = "error: " why; answer = "That failed: " why "."
    }
    if (sub(/\}\]\}\],"tools":/, "}]},{\"role\":\"tool\",\"name\":\"" name "\",\"content\":\"" result \
        "\"},{\"role\":\"assistant\",\"content\":\"" answer "\"}],\"tools\":")) print
}
