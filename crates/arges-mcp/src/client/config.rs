//! The `mcpServers` file, as MCP clients commonly read it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file that is not what it should be.
    #[error("{}: {message}", .path.display())]
    Json { path: PathBuf, message: String },
    /// An entry that cannot be used.
    #[error("server {server:?}: {message}")]
    Server { server: String, message: String },
}

/// The servers of a file, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub servers: Vec<ServerEntry>,
}

/// A server, and what it is trusted with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEntry {
    pub name: String,
    pub transport: Transport,
    /// Tools that run without asking; `*` is all of them.
    pub always_allow: Vec<String>,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// As a child process, over its standard streams.
    Stdio { command: String, args: Vec<String>, env: Vec<(String, String)>, cwd: Option<PathBuf> },
    /// Over streamable HTTP.
    Http { url: String, headers: Vec<(String, String)> },
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "mcpServers")]
    servers: serde_json::Map<String, serde_json::Value>,
}

/// An entry as it is written. Clients have further fields of their own, which are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: serde_json::Map<String, serde_json::Value>,
    cwd: Option<PathBuf>,
    #[serde(alias = "serverUrl")]
    url: Option<String>,
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(default)]
    disabled: bool,
    #[serde(default, alias = "autoApprove")]
    always_allow: Vec<String>,
}

impl Config {
    /// Reads a file. `${NAME}` and `${NAME:-default}` in its texts stand for environment variables.
    ///
    /// # Errors
    /// A file that cannot be read or is not of this form; entries are named.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, &|name| std::env::var(name).ok())
    }

    fn parse(
        text: &str,
        path: &Path,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let file: File = serde_json::from_str(text)
            .map_err(|error| ConfigError::Json { path: path.to_owned(), message: error.to_string() })?;
        let mut servers = Vec::new();
        for (name, entry) in file.servers {
            let wrong = |message: String| ConfigError::Server { server: name.clone(), message };
            let entry: Entry = serde_json::from_value(entry).map_err(|error| wrong(error.to_string()))?;
            if entry.disabled {
                continue;
            }
            let always_allow = entry.always_allow.clone();
            let transport = entry.transport(variable).map_err(wrong)?;
            servers.push(ServerEntry { name: name.clone(), transport, always_allow });
        }
        Ok(Config { servers })
    }
}

impl Entry {
    fn transport(self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Transport, String> {
        let expand = |text: &str| expanded(text, variable);
        match (self.kind.as_deref(), self.command, self.url) {
            (Some("sse"), ..) => {
                Err("`type` sse is the transport of 2024, which is not supported; its servers speak `http` too as \
                     a rule"
                    .to_owned())
            }
            (Some("stdio") | None, Some(command), None) => Ok(Transport::Stdio {
                command: expand(&command)?,
                args: self.args.iter().map(|argument| expand(argument)).collect::<Result<_, _>>()?,
                env: self.env.iter().map(|(name, value)| Ok((name.clone(), expand(&plain(value))?))).collect::<Result<_, String>>()?,
                cwd: self.cwd,
            }),
            (Some("http" | "streamable-http" | "streamableHttp") | None, None, Some(url)) => Ok(Transport::Http {
                url: expand(&url)?,
                headers: self.headers.iter().map(|(name, value)| Ok((name.clone(), expand(value)?))).collect::<Result<_, String>>()?,
            }),
            (Some(kind), ..) if !["stdio", "http", "streamable-http", "streamableHttp"].contains(&kind) => {
                Err(format!("`type` is {kind:?}: it may be stdio or http"))
            }
            (_, Some(_), Some(_)) => Err("it has both `command` and `url`: give one of them".to_owned()),
            (Some(kind), ..) => Err(format!("`type` {kind} needs `{}`", if kind == "stdio" { "command" } else { "url" })),
            (None, None, None) => Err("it needs `command` (a program) or `url` (an address)".to_owned()),
        }
    }
}

/// Values of variables are texts; numbers and truth values are taken for theirs.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn expanded(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        result.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            return Err(format!("a brace is not closed in {text:?}"));
        };
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let value = variable(name).filter(|value| default.is_none() || !value.is_empty());
        match value.or_else(|| default.map(str::to_owned)) {
            Some(value) => result.push_str(&value),
            None => return Err(format!("the environment has no variable {name}, which {text:?} names")),
        }
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let variable = |name: &str| (name == "KEY").then(|| "secret".to_owned());
        Config::parse(text, Path::new("mcp.json"), &variable).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_of_other_clients_is_read() {
        let config = parse(
            r#"{"mcpServers": {
                "MiniMax": {"command": "arges", "args": ["mcp", "serve"], "env": {"MINIMAX_API_KEY": "${KEY}", "N": 1},
                            "timeout": 60, "alwaysAllow": ["list_voices"]},
                "web": {"type": "http", "url": "https://x/${NONE:-mcp}", "headers": {"Authorization": "Bearer ${KEY}"}},
                "off": {"command": "x", "disabled": true}
            }, "other": 1}"#,
        )
        .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            config.servers,
            [
                ServerEntry {
                    name: "MiniMax".into(),
                    transport: Transport::Stdio {
                        command: "arges".into(),
                        args: vec!["mcp".into(), "serve".into()],
                        env: vec![pair("MINIMAX_API_KEY", "secret"), pair("N", "1")],
                        cwd: None,
                    },
                    always_allow: vec!["list_voices".into()],
                },
                ServerEntry {
                    name: "web".into(),
                    transport: Transport::Http {
                        url: "https://x/mcp".into(),
                        headers: vec![pair("Authorization", "Bearer secret")],
                    },
                    always_allow: vec![],
                },
            ]
        );
    }

    #[test]
    fn a_wrong_entry_is_named() {
        for (entry, expected) in [
            (r#"{}"#, "server \"a\": it needs `command`"),
            (r#"{"command": 1}"#, "server \"a\": invalid type"),
            (r#"{"command": "x", "url": "y"}"#, "server \"a\": it has both"),
            (r#"{"type": "ws", "url": "y"}"#, "server \"a\": `type` is \"ws\""),
            (r#"{"type": "http", "command": "y"}"#, "server \"a\": `type` http needs `url`"),
            (r#"{"type": "sse", "url": "y"}"#, "server \"a\": `type` sse"),
            (r#"{"command": "${NONE}"}"#, "server \"a\": the environment has no variable NONE"),
            (r#"{"command": "${KEY"}"#, "server \"a\": a brace is not closed"),
        ] {
            let error = parse(&format!(r#"{{"mcpServers": {{"a": {entry}}}}}"#)).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(parse("{}").unwrap_err().starts_with("mcp.json: missing field `mcpServers`"));
    }
}
