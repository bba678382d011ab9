package main

import (
	"fmt"
	"html"
	"io"
)

// Sizes of the chart in SVG user units.
const (
	chartWidth = 760
	barHeight  = 16
	barStep    = 22
	labelWidth = 260
	valueWidth = 110
	panelHead  = 34
	panelFoot  = 14
)

// colors tell the kernel's bars from podgate's.
var colors = map[bool]string{true: "#2b6cb0", false: "#9aa5b1"}

// chart draws one panel of bars for every metric and MTU.
func (r *report) chart(w io.Writer) {
	type panel struct {
		metric metric
		mtu    int
		cells  []*cell
	}
	var panels []panel
	height := 30
	for _, m := range metrics {
		for _, mtu := range r.mtus() {
			p := panel{metric: m, mtu: mtu}
			for _, name := range r.rows(mtu) {
				if c := r.cell(name, mtu, m.id); c != nil {
					p.cells = append(p.cells, c)
				}
			}
			if len(p.cells) > 0 {
				panels = append(panels, p)
				height += panelHead + len(p.cells)*barStep + panelFoot
			}
		}
	}
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
<text x="10" y="20" fill="#555">%s</text>
`, chartWidth, height, html.EscapeString(fmt.Sprintf("%s, %d CPUs, Linux %s, %s", r.Machine.CPU, r.Machine.CPUs, r.Machine.Kernel, r.Started.Format("2006-01-02"))))
	y := 30
	for _, p := range panels {
		better := "more is better"
		if p.metric.smaller {
			better = "less is better"
		}
		fmt.Fprintf(w, `<text x="10" y="%d" font-weight="bold">%s, %s, MTU %d (%s)</text>`+"\n",
			y+22, html.EscapeString(p.metric.title), p.metric.unit, p.mtu, better)
		y += panelHead
		most := 0.0
		for _, c := range p.cells {
			most = max(most, c.Median)
		}
		for _, c := range p.cells {
			length := 0.0
			if most > 0 {
				length = c.Median / most * (chartWidth - labelWidth - valueWidth)
			}
			podgate := c.System != bridgeName && c.System != iptablesName
			fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%.1f  (x %.2f)</text>`+"\n",
				labelWidth-8, y+12, html.EscapeString(c.System),
				labelWidth, y, length, barHeight, colors[podgate],
				labelWidth+length+6, y+12, c.Median, c.ToBridge)
			y += barStep
		}
		y += panelFoot
	}
	fmt.Fprintln(w, "</svg>")
}
