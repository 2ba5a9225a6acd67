//! A JSON object whose values remember where they are in the file.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{ConfigError, Place, Warning, unknown};

/// The file being read.
pub(crate) struct Document<'a> {
    pub(crate) file: &'a Path,
    pub(crate) text: &'a str,
    pub(crate) warnings: RefCell<Vec<Warning>>,
}

impl<'a> Document<'a> {
    /// Gives the file's outermost object to `read`; the keys that it does not ask for become warnings.
    pub(crate) fn read<T>(
        &'a self,
        read: impl FnOnce(&mut Object<'a>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let last_key = RefCell::new(String::new());
        let entries = entries(self.text, &last_key).map_err(|error| ConfigError::Syntax {
            place: self.place(error.line().max(1), error.column().max(1)),
            key: last_key.into_inner(),
            problem: without_position(&error),
        })?;
        self.object(self.text, String::new(), entries, read)
    }

    fn object<T>(
        &'a self,
        text: &'a str,
        path: String,
        entries: Vec<(String, &'a RawValue)>,
        read: impl FnOnce(&mut Object<'a>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let mut object = Object {
            document: self,
            text,
            path,
            entries,
            asked: Vec::new(),
        };
        let value = read(&mut object)?;
        object.finish();
        Ok(value)
    }

    fn place(&self, line: usize, column: usize) -> Place {
        Place {
            file: self.file.to_owned(),
            line,
            column,
        }
    }

    /// The place of `raw`, which must be a part of the text.
    fn place_of(&self, raw: &str) -> Place {
        let offset = (raw.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let before = self.text.get(..offset).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.place(before.matches('\n').count() + 1, offset - line_start + 1)
    }
}

/// A JSON object; keys that are asked for are known, the others end up as warnings.
pub(crate) struct Object<'a> {
    document: &'a Document<'a>,
    text: &'a str,
    /// This object's own key with the keys above it; empty for the outermost.
    path: String,
    entries: Vec<(String, &'a RawValue)>,
    asked: Vec<&'static str>,
}

impl<'a> Object<'a> {
    /// The value of `key`, which `check` turns into what the program uses or refuses with a reason.
    /// `None` if the key is missing or null.
    pub(crate) fn read_with<T, U>(
        &mut self,
        key: &'static str,
        check: impl FnOnce(T) -> Result<U, String>,
    ) -> Result<Option<U>, ConfigError>
    where
        T: Deserialize<'a>,
    {
        let Some(raw) = self.take(key) else {
            return Ok(None);
        };
        serde_json::from_str::<Option<T>>(raw)
            .map_err(|error| without_position(&error))
            .and_then(|value| value.map(check).transpose())
            .map_err(|problem| self.error(key, raw, problem))
    }

    /// The value of `key` as it is; `None` if it is missing or null.
    pub(crate) fn read<T: Deserialize<'a>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        self.read_with(key, Ok)
    }

    /// The object under `key`, as `read` makes it; `None` if it is missing or null.
    pub(crate) fn object<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Object<'a>) -> Result<T, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        match self.take(key) {
            None | Some("null") => Ok(None),
            Some(raw) => self.child(key, raw, read).map(Some),
        }
    }

    /// The objects of the array under `key`, as `read` makes them; `None` if it is missing or null.
    pub(crate) fn objects<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Object<'a>) -> Result<T, ConfigError>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(raw) = self.take(key) else {
            return Ok(None);
        };
        let items = serde_json::from_str::<Option<Vec<&'a RawValue>>>(raw)
            .map_err(|error| self.error(key, raw, without_position(&error)))?;
        let Some(items) = items else { return Ok(None) };
        let items = items.into_iter().enumerate();
        items
            .map(|(index, item)| self.child(&format!("{key}[{index}]"), item.get(), &mut read))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// An error about this object as a whole.
    pub(crate) fn invalid(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            place: self.document.place_of(self.text),
            key: self.path.clone(),
            problem: problem.into(),
        }
    }

    /// The last value whose key is `key` in any case: the one that Go's JSON keeps.
    fn take(&mut self, key: &'static str) -> Option<&'a str> {
        self.asked.push(key);
        let mut value = None;
        self.entries.retain(|(name, raw)| {
            let same = name.eq_ignore_ascii_case(key);
            if same {
                value = Some(raw.get());
            }
            !same
        });
        value
    }

    fn child<T>(
        &self,
        key: &str,
        raw: &'a str,
        read: impl FnOnce(&mut Object<'a>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let entries = entries(raw, &RefCell::default())
            .map_err(|error| self.error(key, raw, without_position(&error)))?;
        self.document.object(raw, self.path_of(key), entries, read)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn error(&self, key: &str, raw: &str, problem: String) -> ConfigError {
        ConfigError::Value {
            place: self.document.place_of(raw),
            key: self.path_of(key),
            problem,
        }
    }

    fn finish(self) {
        let mut warnings = self.document.warnings.borrow_mut();
        for (key, raw) in &self.entries {
            warnings.push(Warning {
                place: self.document.place_of(raw.get()),
                key: self.path_of(key),
                hint: unknown::hint(key, &self.asked),
            });
        }
    }
}

/// The keys and values of the object that `text` is, in order. `last_key` holds the key at which reading
/// stopped, if it fails.
fn entries<'a>(
    text: &'a str,
    last_key: &RefCell<String>,
) -> Result<Vec<(String, &'a RawValue)>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let entries = deserializer.deserialize_map(Entries { last_key })?;
    deserializer.end()?;
    Ok(entries)
}

struct Entries<'k> {
    last_key: &'k RefCell<String>,
}

impl<'a> Visitor<'a> for Entries<'_> {
    type Value = Vec<(String, &'a RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            self.last_key.replace(key.clone());
            entries.push((key, map.next_value()?));
        }
        Ok(entries)
    }
}

/// The error without serde's own position, which for a part of the file would be wrong.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
