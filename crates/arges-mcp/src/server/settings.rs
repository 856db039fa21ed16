//! What the environment and the command say about a server.

use std::io;

use thiserror::Error;

use crate::files::Folder;
use crate::limits::Limits;

/// Environment variables, under the names of the original servers.
const API_KEY: &str = "MINIMAX_API_KEY";
const API_HOST: &str = "MINIMAX_API_HOST";
const BASE_PATH: &str = "MINIMAX_MCP_BASE_PATH";
/// The Python server's name first, then the JavaScript one's.
const RESOURCE_MODE: [&str; 2] = ["MINIMAX_API_RESOURCE_MODE", "MINIMAX_RESOURCE_MODE"];
const DEFAULT_BASE_PATH: &str = "~/Desktop";

/// Settings that cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// A variable that must be set.
    #[error("{variable} is not set: {hint}")]
    NotSet { variable: &'static str, hint: &'static str },
    /// An address that is none.
    #[error("{API_HOST} is {value:?}, not an address such as https://api.minimax.io")]
    Host { value: String },
    /// A mode that there is not.
    #[error("{variable} is {value:?}: it may be url or local")]
    ResourceMode { variable: &'static str, value: String },
    /// A base path that cannot be made absolute.
    #[error("{BASE_PATH} is {value:?}: {source}")]
    BasePath { value: String, source: io::Error },
    /// TLS that cannot be set up.
    #[error("cannot set up HTTP: {0}")]
    Http(#[from] reqwest::Error),
}

/// Who makes what tools give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// MiniMax's API.
    Api { host: String, key: String },
    /// This machine, without a key.
    Local,
}

/// How results come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceMode {
    /// As addresses.
    Url,
    /// As files.
    Local,
}

/// Settings of one server.
#[derive(Debug, Clone)]
pub struct Settings {
    pub backend: Backend,
    pub folder: Folder,
    /// Whether the base path was given, and relative input paths count from it.
    pub base_path_given: bool,
    pub resource_mode: ResourceMode,
    /// Whether only files below the base path may be read: set for clients that may be on other machines.
    pub confined: bool,
    pub limits: Limits,
}

impl Settings {
    /// Settings by environment variables, which `variable` looks up; empty ones count as not set. With `local`,
    /// no key is needed.
    ///
    /// # Errors
    /// A variable that is missing or wrong.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
        local: bool,
    ) -> Result<Settings, SettingsError> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let backend = if local { Backend::Local } else { api(&variable)? };
        let resource_mode = RESOURCE_MODE.iter().find_map(|&name| Some((name, variable(name)?)));
        let resource_mode = match resource_mode {
            None => ResourceMode::Url,
            Some((_, value)) if value == "url" => ResourceMode::Url,
            Some((_, value)) if value == "local" => ResourceMode::Local,
            Some((variable, value)) => return Err(SettingsError::ResourceMode { variable, value }),
        };
        let base_path = variable(BASE_PATH);
        let path = base_path.as_deref().unwrap_or(DEFAULT_BASE_PATH);
        let folder =
            Folder::new(path).map_err(|source| SettingsError::BasePath { value: path.to_owned(), source })?;
        Ok(Settings {
            backend,
            folder,
            base_path_given: base_path.is_some(),
            resource_mode,
            confined: false,
            limits: Limits::default(),
        })
    }
}

fn api(variable: &impl Fn(&str) -> Option<String>) -> Result<Backend, SettingsError> {
    let required = |name, hint| variable(name).ok_or(SettingsError::NotSet { variable: name, hint });
    let key = required(
        API_KEY,
        "set it to a key of https://www.minimax.io/platform (or https://platform.minimaxi.com), \
         or try the tools without one: --backend local",
    )?;
    let host = required(
        API_HOST,
        "set it to https://api.minimax.io, or to https://api.minimaxi.com for a key of mainland China",
    )?;
    let is_address = |host: &str| host.starts_with("https://") || host.starts_with("http://");
    let host = host.trim().to_owned();
    if !is_address(&host) {
        return Err(SettingsError::Host { value: host });
    }
    Ok(Backend::Api { host, key: key.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], local: bool) -> Result<Settings, String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::from_environment(variable, local).map_err(|error| error.to_string())
    }

    const KEY: (&str, &str) = ("MINIMAX_API_KEY", "k");
    const HOST: (&str, &str) = ("MINIMAX_API_HOST", "https://api.minimax.io");

    #[test]
    fn a_variable_that_is_missing_or_wrong_is_named() {
        for (variables, expected) in [
            (vec![HOST], "MINIMAX_API_KEY is not set"),
            (vec![KEY], "MINIMAX_API_HOST is not set"),
            (vec![KEY, ("MINIMAX_API_HOST", "api.minimax.io")], "MINIMAX_API_HOST is \"api.minimax.io\""),
            (vec![KEY, HOST, ("MINIMAX_API_RESOURCE_MODE", "x")], "MINIMAX_API_RESOURCE_MODE is \"x\""),
        ] {
            let error = settings(&variables, false).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_defaults_are_addresses_and_the_desktop() {
        let settings = settings(&[KEY, HOST, ("MINIMAX_MCP_BASE_PATH", "")], false).unwrap();
        assert_eq!(settings.resource_mode, ResourceMode::Url);
        assert!(settings.folder.base().ends_with("Desktop") && !settings.base_path_given);
    }

    #[test]
    fn this_machine_needs_no_key() {
        assert_eq!(settings(&[], true).unwrap().backend, Backend::Local);
    }
}
