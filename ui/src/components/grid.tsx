/** A long list of rows, of which only those in sight are drawn; it is a table for a screen reader all the same. */
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useRef, type ReactNode } from "react";

export interface Column<T> {
  name: string;
  /** Its width, as CSS grids take it. */
  width: string;
  /** Its width where there is little room, if that is another. */
  narrow?: string;
  right?: boolean;
  /** Left out where there is little room. */
  wide?: boolean;
  cell: (row: T) => ReactNode;
}

export const ROW = 32;

export function Grid<T>(props: {
  label: string;
  rows: T[];
  columns: Column<T>[];
  id: (row: T) => string;
  onOpen?: (row: T) => void;
  selected?: string;
  height?: number;
  /** Told when the end is near. */
  onEnd?: () => void;
  total?: number;
}) {
  const scroller = useRef<HTMLDivElement>(null);
  const { rows, columns, id, onOpen, selected, onEnd } = props;
  const virtual = useVirtualizer({ count: rows.length, getScrollElement: () => scroller.current, estimateSize: () => ROW, overscan: 12 });
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? 0;
  useEffect(() => {
    if (last >= rows.length - 10 && rows.length > 0) onEnd?.();
  }, [last, rows.length, onEnd]);
  const template = columns.map(({ width }) => width).join(" ");
  const narrow = columns.filter(({ wide }) => !wide).map(({ width, narrow }) => narrow ?? width).join(" ");
  const height = Math.min(props.height ?? 480, (rows.length + 1) * ROW + 2);
  return (
    <div className="grid" ref={scroller} style={{ height }} role="table" aria-label={props.label} aria-rowcount={props.total ?? rows.length + 1} tabIndex={0} data-rows>
      <div role="rowgroup" className="grid-head">
        <div role="row" className="grid-row" style={{ "--columns": template, "--narrow": narrow } as React.CSSProperties}>
          {columns.map((column) => (
            <div key={column.name} role="columnheader" className={cellClass(column)}>
              {column.name}
            </div>
          ))}
        </div>
      </div>
      <div role="rowgroup" style={{ height: virtual.getTotalSize(), position: "relative" }}>
        {items.map((item) => {
          const row = rows[item.index]!;
          const key = id(row);
          return (
            <div
              key={key}
              role="row"
              aria-rowindex={item.index + 2}
              aria-selected={selected === key}
              className={onOpen ? "grid-row open" : "grid-row"}
              style={{ transform: `translateY(${item.start}px)`, position: "absolute", "--columns": template, "--narrow": narrow } as React.CSSProperties}
              tabIndex={onOpen ? -1 : undefined}
              data-row={key}
              onClick={onOpen ? () => onOpen(row) : undefined}
              onKeyDown={
                onOpen
                  ? (event) => {
                      if (event.key === "Enter") onOpen(row);
                    }
                  : undefined
              }
            >
              {columns.map((column) => (
                <div key={column.name} role="cell" className={cellClass(column)}>
                  {column.cell(row)}
                </div>
              ))}
            </div>
          );
        })}
      </div>
    </div>
  );
}

const cellClass = <T,>({ right, wide }: Column<T>): string => `cell${right ? " right" : ""}${wide ? " wide" : ""}`;
