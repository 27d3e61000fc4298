//! `mcpg sql`: a query, as a table, or as the bytes of a format.

use std::io::{Cursor, IsTerminal, Read};

use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use clap::{Args, ValueEnum};
use futures::StreamExt;
use reqwest::header::ACCEPT;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::{CliError, http, output};
use crate::config::Secret;
use crate::model::{OrgName, causes};

#[derive(Debug, Args)]
pub(super) struct SqlArgs {
    /// The query; `-` reads it from standard input.
    query: String,
    /// The control plane.
    #[arg(long, env = "MCPG_URL", default_value = "http://127.0.0.1:7843")]
    url: Url,
    /// The org whose tables are queried.
    #[arg(long, env = "MCPG_ORG", default_value = "default")]
    org: OrgName,
    /// The API token, with the role `read`.
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true, value_parser = http::secret)]
    token: Option<Secret>,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The value of $1, then of $2 and so on: a number, true, false or null, else text; "…" makes text of anything.
    #[arg(long = "param", value_name = "VALUE", allow_hyphen_values = true)]
    params: Vec<String>,
    /// In CSV, write texts as they are, though a spreadsheet may take them for formulas.
    #[arg(long)]
    raw_csv: bool,
    /// In JSON and NDJSON, write whole numbers and decimals that no double holds as strings.
    #[arg(long)]
    text_numbers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// One JSON object with columns and rows.
    Json,
    /// A JSON object a row.
    Ndjson,
    /// Comma-separated, with a header line.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// The media type that is asked for.
    const fn accept(self) -> &'static str {
        match self {
            Self::Table | Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

pub(super) async fn run(args: SqlArgs) -> Result<(), CliError> {
    let binary = matches!(args.format, Format::Arrow | Format::Parquet);
    if binary && std::io::stdout().is_terminal() {
        return Err(CliError::CouldNot("this format is not for terminals; redirect it into a file".to_owned()));
    }
    let query = query_text(&args.query)?;
    let response = send(&args, &query).await?;
    if !response.status().is_success() {
        return Err(refusal(response, &query).await);
    }
    let id = request_id(&response);
    let broken_off = |error: reqwest::Error| {
        let id = id.as_ref().map(|id| format!(" (request id {id})")).unwrap_or_default();
        CliError::could_not("the answer broke off, so it is not complete", format!("{}{id}", causes(&error)))
    };
    if args.format == Format::Table {
        let body = response.bytes().await.map_err(broken_off)?;
        return output::write(table(&body)?.as_bytes());
    }
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        output::write(&chunk.map_err(broken_off)?)?;
    }
    if args.format == Format::Json && std::io::stdout().is_terminal() {
        output::line("")?;
    }
    Ok(())
}

fn query_text(argument: &str) -> Result<String, CliError> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|error| CliError::could_not("standard input", error))?;
    decoded(&bytes).ok_or_else(|| CliError::CouldNot("standard input is no text in UTF-8 or UTF-16".to_owned()))
}

/// A text, as shells hand it over: in UTF-8, or in UTF-16 after a byte order mark, as PowerShell does.
fn decoded(bytes: &[u8]) -> Option<String> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks::<2>();
        rest.is_empty().then(|| String::from_utf16(&units.iter().map(|pair| unit(*pair)).collect::<Vec<_>>()).ok())?
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

async fn send(args: &SqlArgs, query: &str) -> Result<Response, CliError> {
    let mut url = http::path(&args.url, &["v1", "orgs", args.org.as_str(), "sql"])?;
    if args.raw_csv {
        url.query_pairs_mut().append_pair("csv", "raw");
    }
    if args.text_numbers {
        url.query_pairs_mut().append_pair("numbers", "text");
    }
    let params: Vec<Value> = args.params.iter().map(|text| parameter(text)).collect();
    let mut request = http::client(&args.url)?
        .post(url)
        .header(ACCEPT, args.format.accept())
        .json(&json!({ "query": query, "params": params }));
    if let Some(token) = &args.token {
        request = request.bearer_auth(token.expose());
    }
    request.send().await.map_err(|error| http::not_reached(&args.url, &error))
}

/// A parameter as JSON where it is a plain value of it, else as text.
fn parameter(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
        _ => Value::from(text),
    }
}

/// Why the server did not answer the query: no when the query or its sender is at fault, else it could not.
async fn refusal(response: Response, query: &str) -> CliError {
    let status = response.status();
    let id = request_id(&response);
    let problem: Option<Value> = response.json().await.ok();
    let mut said = problem.as_ref().map_or_else(|| status.to_string(), |problem| explain(problem, query));
    // What went wrong there stands in its log under this id.
    if status.is_server_error()
        && let Some(id) = id
    {
        said.push_str(&format!("\nrequest id: {id}"));
    }
    if status.is_client_error() && !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        CliError::No(said)
    } else {
        CliError::CouldNot(said)
    }
}

/// A problem document for people, with the place in the query where it tells one.
fn explain(problem: &Value, query: &str) -> String {
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut said = format!("{}: {}", text("code"), text("detail"));
    let place = |name: &str| usize::try_from(problem.get("position")?.get(name)?.as_u64()?).ok()?.checked_sub(1);
    if let (Some(line), Some(column)) = (place("line"), place("column"))
        && let Some(line) = query.lines().nth(line)
    {
        said.push_str(&format!("\n  {line}\n  {}^", " ".repeat(column)));
    }
    said
}

/// The id under which the server's log has the request.
fn request_id(response: &Response) -> Option<String> {
    Some(response.headers().get("x-request-id")?.to_str().ok()?.to_owned())
}

/// An Arrow stream as a table.
fn table(body: &[u8]) -> Result<String, CliError> {
    let unreadable = |error| CliError::could_not("the answer cannot be read", error);
    let reader = StreamReader::try_new(Cursor::new(body), None).map_err(unreadable)?;
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if batches.is_empty() {
        // So that the header is shown all the same.
        batches.push(RecordBatch::new_empty(schema));
    }
    let table = pretty_format_batches(&batches).map_err(unreadable)?;
    Ok(format!("{table}\n{rows} {}\n", if rows == 1 { "row" } else { "rows" }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::ipc::writer::StreamWriter;
    use arrow::record_batch::RecordBatch;
    use serde_json::json;

    use super::{decoded, explain, parameter, table};

    #[test]
    fn a_parameter_is_a_plain_value_or_text() {
        assert_eq!(parameter("5"), json!(5));
        assert_eq!(parameter("1.5"), json!(1.5));
        assert_eq!(parameter("true"), json!(true));
        assert_eq!(parameter("null"), json!(null));
        assert_eq!(parameter("github"), json!("github"));
        assert_eq!(parameter("\"5\""), json!("5"));
        assert_eq!(parameter("[1]"), json!("[1]"));
    }

    #[test]
    fn a_query_is_read_as_shells_hand_it_over() {
        for given in [
            b"SELECT 1".to_vec(),
            b"\xef\xbb\xbfSELECT 1".to_vec(),
            [vec![0xff, 0xfe], "SELECT 1".encode_utf16().flat_map(u16::to_le_bytes).collect()].concat(),
            [vec![0xfe, 0xff], "SELECT 1".encode_utf16().flat_map(u16::to_be_bytes).collect()].concat(),
        ] {
            assert_eq!(decoded(&given).as_deref(), Some("SELECT 1"));
        }
        assert_eq!(decoded(b"\xff\xfeS"), None);
        assert_eq!(decoded(b"\xff"), None);
    }

    #[test]
    fn the_place_of_a_fault_is_pointed_at() {
        let problem =
            json!({ "code": "invalid_query", "detail": "no column b", "position": { "line": 2, "column": 3 } });
        assert_eq!(explain(&problem, "SELECT a,\n  b FROM t"), "invalid_query: no column b\n    b FROM t\n    ^");
        let elsewhere = json!({ "code": "c", "detail": "d", "position": { "line": 9, "column": 0 } });
        assert_eq!(explain(&elsewhere, "SELECT"), "c: d");
    }

    fn stream(values: &[i64]) -> Vec<u8> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        if !values.is_empty() {
            let column = Arc::new(Int64Array::from(values.to_vec()));
            writer.write(&RecordBatch::try_new(schema, vec![column]).unwrap()).unwrap();
        }
        writer.into_inner().unwrap()
    }

    #[test]
    fn a_table_shows_its_header_and_counts_its_rows() {
        assert_eq!(table(&stream(&[7])).unwrap(), "+---+\n| n |\n+---+\n| 7 |\n+---+\n1 row\n");
        assert!(table(&stream(&[])).unwrap().ends_with("0 rows\n"));
        assert!(table(&stream(&[])).unwrap().contains("| n |"));
    }

    #[test]
    fn a_stream_that_is_cut_off_is_no_table() {
        let whole = stream(&[1, 2, 3]);
        assert!(table(&whole[..whole.len() / 2]).is_err());
    }
}
