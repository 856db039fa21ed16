//! A Parquet file that is read a row group at a time, and only the columns that are needed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{ConvertedType, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::{ColumnDescriptor, Type};
use serde_json::{Map, Value};

use super::DataError;

/// An open Parquet file.
pub struct ParquetFile {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    projection: Type,
    /// Rows of each row group.
    groups: Vec<u64>,
    bytes: u64,
}

impl ParquetFile {
    /// Opens a file to read those columns of it; only the first must be there.
    pub fn open(path: &Path, columns: &[&str]) -> Result<Self, DataError> {
        let read_error = |source| DataError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let bytes = file.metadata().map_err(read_error)?.len();
        let reader = SerializedFileReader::new(file).map_err(parquet_error(path))?;
        let metadata = reader.metadata();
        let schema = metadata.file_metadata().schema_descr();
        let chosen = schema.root_schema().get_fields().iter();
        let chosen: Vec<_> = chosen.filter(|field| columns.contains(&field.name())).cloned().collect();
        if let Some(first) = columns.first()
            && !chosen.iter().any(|field| field.name() == *first)
        {
            return Err(DataError::Path {
                path: path.to_owned(),
                reason: format!("has no column `{first}`"),
            });
        }
        for leaf in schema.columns() {
            if columns.iter().any(|name| leaf.path().parts().first().is_some_and(|root| root == name)) {
                check_leaf(path, leaf)?;
            }
        }
        let projection = Type::group_type_builder(schema.root_schema().name()).with_fields(chosen).build();
        let projection = projection.map_err(parquet_error(path))?;
        let groups = metadata.row_groups().iter().map(|group| group.num_rows().max(0) as u64).collect();
        Ok(Self { path: path.to_owned(), reader, projection, groups, bytes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows of each row group.
    pub fn group_rows(&self) -> impl Iterator<Item = u64> {
        self.groups.iter().copied()
    }

    /// The number in the file of a group's first row.
    pub fn first_row(&self, group: usize) -> u64 {
        self.groups[..group].iter().sum()
    }

    /// The rows of a group as JSON objects, without the columns that are null.
    pub fn read_group(&self, group: usize) -> Result<Vec<Value>, DataError> {
        let read = || -> Result<Vec<Value>, ParquetError> {
            let group = self.reader.get_row_group(group)?;
            let rows = group.get_row_iter(Some(self.projection.clone()))?;
            rows.map(|row| Ok(Value::Object(object(row?)))).collect()
        };
        read().map_err(parquet_error(&self.path))
    }
}

fn parquet_error(path: &Path) -> impl FnOnce(ParquetError) -> DataError {
    move |source| DataError::Parquet { path: path.to_owned(), source }
}

/// Refuses columns of types that no text or message has; some of them the reader could not convert.
fn check_leaf(path: &Path, leaf: &Arc<ColumnDescriptor>) -> Result<(), DataError> {
    use ConvertedType as C;
    let supported = match leaf.physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::BYTE_ARRAY => matches!(leaf.converted_type(), C::UTF8 | C::ENUM | C::JSON | C::NONE),
        Physical::INT32 => matches!(
            leaf.converted_type(),
            C::NONE | C::INT_8 | C::INT_16 | C::INT_32 | C::UINT_8 | C::UINT_16 | C::UINT_32
        ),
        Physical::INT64 => matches!(leaf.converted_type(), C::NONE | C::INT_64 | C::UINT_64),
        Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
    };
    if supported {
        return Ok(());
    }
    let (kind, converted) = (leaf.physical_type(), leaf.converted_type());
    let reason =
        format!("column `{}` is of type {kind} ({converted}), which is no text", leaf.path().string());
    Err(DataError::Path { path: path.to_owned(), reason })
}

fn object(row: Row) -> Map<String, Value> {
    let fields = row.into_columns().into_iter().map(|(name, field)| (name, value(&field)));
    fields.filter(|(_, value)| !value.is_null()).collect()
}

/// A field as JSON. Fields of a struct that are null are left out: tables give every struct all fields that any has.
fn value(field: &Field) -> Value {
    match field {
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into(),
        Field::Group(row) => Value::Object(object(row.clone())),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(key, entry)| match value(key) {
                Value::String(key) => (key, value(entry)),
                key => (key.to_string(), value(entry)),
            });
            Value::Object(entries.collect())
        }
        // Null, and types that `check_leaf` lets nobody open.
        _ => Value::Null,
    }
}
