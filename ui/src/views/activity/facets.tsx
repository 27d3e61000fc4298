/** Facets: what values there are and how many calls each has. A click keeps one, the sign beside it leaves it out. */
import { useState } from "react";
import type { Value } from "../../api/activity";
import { Name, Outcome } from "../../components/text";
import { Share } from "../../components/spark";
import { count, percent } from "../../lib/format";
import type { Attribute } from "../../state/attributes";
import { useConditions } from "../../state/url";

const FEW = 6;

export function Facets({ attributes, facets }: { attributes: Attribute[]; facets: Record<string, Value[]> }) {
  return (
    <>
      {attributes
        .filter((a) => a.facet)
        .map((a) => (
          <Facet key={a.key} of={a} values={facets[a.key] ?? []} />
        ))}
    </>
  );
}

function Facet({ of, values: given }: { of: Attribute; values: Value[] }) {
  // Calls without a value are most of some facets, and the least of its news.
  const values = [...given.filter(({ value }) => value !== null), ...given.filter(({ value }) => value === null)];
  const { all, add, remove } = useConditions();
  const [whole, setWhole] = useState(false);
  const chosen = all.filter((c) => c.key === of.key);
  // A value that has no calls now stays in sight as long as it is a condition.
  const absent = chosen.filter((c) => !values.some((v) => (v.value ?? "") === c.value)).map((c) => ({ value: c.value, calls: 0 }));
  const shown = [...(whole ? values : values.slice(0, FEW)), ...absent];
  const sum = values.reduce((total, { calls }) => total + calls, 0);
  // One value that all calls have says nothing.
  if (values.length === 0 && absent.length === 0) return null;
  if (values.length === 1 && values[0]!.value === null && chosen.length === 0) return null;
  return (
    <section className="facet" aria-label={`facet: ${of.word}`}>
      <h2>{of.word}</h2>
      <ul>
        {shown.map(({ value, calls }) => {
          const text = value ?? "";
          const condition = chosen.find((c) => c.value === text);
          const state = condition ? (condition.keep ? "kept" : "left") : "";
          return (
            <li key={text} className={`facet-row ${state}`}>
              <button
                type="button"
                className="facet-value"
                aria-pressed={condition?.keep === true}
                onClick={() => (condition?.keep ? remove(condition) : add({ key: of.key, value: text, keep: true }))}
              >
                {of.key === "outcome" ? <Outcome>{text}</Outcome> : <Name>{value}</Name>}
                <span className="facet-count" title={`${percent(sum ? calls / sum : 0)} of the calls`}>
                  {count(calls)}
                </span>
                <Share of={sum ? calls / sum : 0} className="facet-share" />
              </button>
              <button
                type="button"
                className="facet-not"
                aria-pressed={condition?.keep === false}
                aria-label={`leave out ${of.word} ${text || "none"}`}
                title="leave out"
                onClick={() => (condition && !condition.keep ? remove(condition) : add({ key: of.key, value: text, keep: false }))}
              >
                ≠
              </button>
            </li>
          );
        })}
      </ul>
      {values.length > FEW && (
        <button type="button" className="quiet-button" onClick={() => setWhole(!whole)}>
          {whole ? "fewer" : `${values.length - FEW} more`}
        </button>
      )}
    </section>
  );
}
