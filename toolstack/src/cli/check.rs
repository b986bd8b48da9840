//! `xlrs check`, and reading configurations for `create`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use xlrs::config::{self, DomainConfig, Source};
use xlrs::prepare::Prepared;
use xlrs::{Error, Kind, Result};

use super::common::print_json;
use crate::cli::ExitCode;

/// Longest configuration file that is read.
const MAX_FILE: u64 = 1 << 20;

#[derive(Args)]
pub struct CheckArgs {
    /// The configuration file
    file: PathBuf,
    /// More configuration, as if it stood behind the file
    #[arg(value_name = "KEY=VALUE")]
    more: Vec<String>,
    /// Print JSON: every setting, those that are not in the file too
    #[arg(long)]
    json: bool,
}

pub fn check(args: &CheckArgs) -> Result<ExitCode> {
    let config = read(Some(&args.file), &args.more)?;
    let guest = Prepared::new(config)?;
    if args.json {
        let value = serde_json::to_value(&guest.config);
        let value = value.map_err(|e| Error::new("write JSON", "", e.to_string()))?;
        return print_json(&value);
    }
    print!("{guest}");
    Ok(ExitCode::SUCCESS)
}

/// The file and the `key=value` arguments among the words of a command line.
pub fn split_words(
    defconfig: Option<&PathBuf>,
    words: &[String],
) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut file = defconfig.cloned();
    let mut more = Vec::new();
    let usage = |word: &str, cause: &str| {
        Error::new("read the command line", word, cause).kind(Kind::Usage)
    };
    for word in words {
        if word.contains('=') {
            more.push(word.clone());
        } else if file.is_none() {
            file = Some(word.into());
        } else {
            let error = usage(word, "there are two configuration files");
            return Err(error.hint("name one FILE; what stands behind it is KEY=VALUE"));
        }
    }
    if file.is_none() && more.is_empty() {
        let error = usage("", "no configuration file is named");
        return Err(error.hint("name a FILE, or say all of it as KEY=VALUE"));
    }
    Ok((file, more))
}

/// A file and `key=value` arguments as text.
pub fn sources(file: Option<&Path>, more: &[String]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    if let Some(path) = file.filter(|path| *path != Path::new("/dev/null")) {
        let bytes = read_file(path)?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::new(
                "read the configuration",
                path.display(),
                "it is not UTF-8 text",
            )
            .kind(Kind::Config)
            .hint("name a file in the format of xl.cfg(5)")
        })?;
        sources.push(Source {
            name: path.display().to_string(),
            text,
        });
    }
    for text in more {
        sources.push(Source {
            name: "argument".into(),
            text: quoted(text),
        });
    }
    Ok(sources)
}

/// Reads a file and `key=value` arguments; prints warnings.
pub fn read(file: Option<&Path>, more: &[String]) -> Result<DomainConfig> {
    let sources = sources(file, more)?;
    match config::load(&sources) {
        Ok((config, warnings)) => {
            for warning in warnings {
                eprint!("{warning}");
            }
            Ok(config)
        }
        Err(errors) => {
            eprint!("{errors}");
            let name = sources
                .first()
                .map_or("", |source| &source.name)
                .to_string();
            let count = errors.0.iter().filter(|d| d.is_error()).count();
            let cause = match count {
                1 => "there is an error in it".to_string(),
                _ => format!("there are {count} errors in it"),
            };
            Err(Error::new("read the configuration", name, cause).kind(Kind::Config))
        }
    }
}

/// A file of a believable size, be it a pipe or a device.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let step = "read the configuration";
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|e| {
            let error = Error::system(step, path.display(), &e);
            match e.kind() {
                ErrorKind::IsADirectory => error.hint("name a file in it"),
                _ => error,
            }
        })?;
    if bytes.len() as u64 > MAX_FILE {
        let cause = "it is longer than 1 MiB: it can hardly be one";
        return Err(Error::new(step, path.display(), cause)
            .kind(Kind::Config)
            .hint("name a file in the format of xl.cfg(5)"));
    }
    Ok(bytes)
}

/// On a command line the shell has eaten the quotes: a value that is none by itself is taken as text.
fn quoted(text: &str) -> String {
    let Some((key, value)) = text.split_once('=') else {
        return text.to_string();
    };
    let plain = value.trim_start();
    let is_value =
        plain.starts_with(['"', '\'', '[']) || plain.starts_with(|c: char| c.is_ascii_digit());
    if is_value {
        return text.to_string();
    }
    format!(
        "{key}=\"{}\"",
        value.replace('\\', "\\\\").replace('"', "\\\"")
    )
}
