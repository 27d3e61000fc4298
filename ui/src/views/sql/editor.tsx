/** The editor, with the names of tables, columns and functions. */
import { autocompletion, completionKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { PostgreSQL, sql } from "@codemirror/lang-sql";
import { HighlightStyle, syntaxHighlighting } from "@codemirror/language";
import { Compartment, EditorState, Prec } from "@codemirror/state";
import { drawSelection, EditorView, highlightActiveLine, keymap, lineNumbers, placeholder } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { useEffect, useRef } from "react";
import { nonce } from "../../nonce";

const look = EditorView.theme({
  "&": { color: "var(--text)", backgroundColor: "transparent" },
  ".cm-content": { fontFamily: "var(--mono)", caretColor: "var(--text)", padding: "8px 0" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "transparent", color: "var(--muted)", border: "0" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "transparent" },
  "&.cm-focused": { outline: "2px solid var(--accent)", outlineOffset: "-1px" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": { background: "var(--accent-soft)" },
  ".cm-tooltip": { background: "var(--surface)", border: "1px solid var(--line-strong)", color: "var(--text)" },
  ".cm-tooltip-autocomplete ul li[aria-selected]": { background: "var(--accent-soft)", color: "var(--text)" },
  ".cm-placeholder": { color: "var(--muted)" },
});

const colours = HighlightStyle.define([
  { tag: tags.keyword, color: "var(--accent)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--good)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--warn)" },
  { tag: tags.comment, color: "var(--muted)" },
]);

export default function Editor(props: { value: string; onChange: (text: string) => void; onRun: () => void; tables: Record<string, string[]>; functions: string[] }) {
  const place = useRef<HTMLDivElement>(null);
  const view = useRef<EditorView | null>(null);
  const language = useRef(new Compartment());
  const told = useRef(props);
  told.current = props;

  useEffect(() => {
    const made = new EditorView({
      parent: place.current!,
      state: EditorState.create({
        doc: told.current.value,
        extensions: [
          EditorView.cspNonce.of(nonce),
          Prec.highest(
            keymap.of([
              {
                key: "Mod-Enter",
                run: () => {
                  told.current.onRun();
                  return true;
                },
              },
            ]),
          ),
          lineNumbers(),
          history(),
          drawSelection(),
          highlightActiveLine(),
          autocompletion(),
          keymap.of([...completionKeymap, ...historyKeymap, ...defaultKeymap]),
          language.current.of(sql({ dialect: PostgreSQL })),
          syntaxHighlighting(colours),
          look,
          placeholder("SELECT tool, count(*) FROM tool_invocations GROUP BY tool"),
          EditorView.contentAttributes.of({ "aria-label": "SQL" }),
          EditorView.lineWrapping,
          // What is typed over a selection the browser would wrap in its style, by an attribute, which the page's policy refuses.
          EditorView.domEventHandlers({
            beforeinput: (event, at) => {
              if (event.inputType !== "insertText" || event.data === null || at.composing || at.state.selection.main.empty) return false;
              event.preventDefault();
              at.dispatch(at.state.replaceSelection(event.data), { userEvent: "input.type", scrollIntoView: true });
              return true;
            },
          }),
          EditorView.updateListener.of((update) => {
            if (update.docChanged) told.current.onChange(update.state.doc.toString());
          }),
        ],
      }),
    });
    view.current = made;
    made.focus();
    return () => made.destroy();
  }, []);

  const { value, tables, functions } = props;
  useEffect(() => {
    const now = view.current;
    if (now && now.state.doc.toString() !== value) now.dispatch({ changes: { from: 0, to: now.state.doc.length, insert: value } });
  }, [value]);
  useEffect(() => {
    const names = PostgreSQL.language.data.of({ autocomplete: (context: import("@codemirror/autocomplete").CompletionContext) => {
      const word = context.matchBefore(/\w+/);
      if (!word && !context.explicit) return null;
      return { from: word?.from ?? context.pos, options: functions.map((label) => ({ label, type: "function", apply: `${label}(` })), validFor: /^\w*$/ };
    } });
    view.current?.dispatch({ effects: language.current.reconfigure([sql({ dialect: PostgreSQL, schema: tables, upperCaseKeywords: true }), names]) });
  }, [tables, functions]);

  return <div className="editor" ref={place} />;
}
