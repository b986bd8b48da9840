//! Which other files an image may make us open: none, unless the host says where they are.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::storage::{Cache, open_image};

/// Opens the files that an image names, or does not.
pub trait OtherFiles {
    /// Opens the file that the image at `image` names as its `role`, and tells where it is. A relative name
    /// begins at the image.
    ///
    /// # Errors
    /// It may not be opened, or cannot be.
    fn open(
        &self,
        image: &Path,
        name: &str,
        role: &str,
        read_only: bool,
    ) -> io::Result<(File, PathBuf)>;
}

/// Folders whose files images may refer to: backing files, data files and extents. Empty by default: whoever
/// makes an image names any file in it, and its guest would read that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    folders: Vec<PathBuf>,
}

impl Policy {
    /// Allows files in these folders and below them.
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn new(folders: &[PathBuf]) -> io::Result<Policy> {
        let folders = folders.iter().map(std::fs::canonicalize);
        Ok(Policy {
            folders: folders.collect::<io::Result<_>>()?,
        })
    }
}

impl OtherFiles for Policy {
    fn open(
        &self,
        image: &Path,
        name: &str,
        role: &str,
        read_only: bool,
    ) -> io::Result<(File, PathBuf)> {
        let refuse = |why: &str| {
            let what = format!("its {role} {name:?} {why}");
            io::Error::new(io::ErrorKind::PermissionDenied, what)
        };
        if self.folders.is_empty() {
            return Err(refuse(
                "is not opened: no folder is allowed for such files (blkback --backing)",
            ));
        }
        let name = Path::new(name.strip_prefix("file:").unwrap_or(name));
        let path = image.parent().unwrap_or(Path::new("/")).join(name);
        let path = std::fs::canonicalize(&path).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("its {role} {}: {error}", path.display()),
            )
        })?;
        // Links were followed: what is compared is where the file is.
        if !self.folders.iter().any(|folder| path.starts_with(folder)) {
            return Err(refuse("is in no folder that is allowed for such files"));
        }
        let (file, _) = open_image(&path, read_only, Cache::Page).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("its {role} {}: {error}", path.display()),
            )
        })?;
        Ok((file, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_in_allowed_folders() {
        let top = std::env::temp_dir().join(format!("blkback-policy-{}", std::process::id()));
        let (inside, outside) = (top.join("in"), top.join("out"));
        for folder in [&inside, &outside] {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join("base"), [0; 512]).unwrap();
        }
        std::os::unix::fs::symlink(outside.join("base"), inside.join("link")).unwrap();
        let image = inside.join("image");
        let allowed = Policy::new(std::slice::from_ref(&inside)).unwrap();
        for (policy, name, fits) in [
            (&allowed, "base", true),
            (&allowed, "file:base", true),
            (&allowed, "../in/base", true),
            (&allowed, "../out/base", false),
            (&allowed, "link", false),
            (&allowed, "/etc/passwd", false),
            (&allowed, "missing", false),
            (&allowed, "", false),
            (&Policy::default(), "base", false),
        ] {
            let outcome = policy.open(&image, name, "backing file", true);
            assert_eq!(outcome.is_ok(), fits, "{name}: {outcome:?}");
        }
        std::fs::remove_dir_all(top).unwrap();
    }
}
